-- The keys of one queue, the constants of the scripts, and the values that a step reads: each is read when it is first
-- needed and written once, when the step ends.
--
-- KEYS, all in one slot, the same for each script:
--   1 meta       hash  format, sequence, lanes: counters; version, stirred: the number of changes, and of changes that
--                      may have made a task claimable; time: the latest time seen by a step; hungry, watched: whether a
--                      caller waits for a claimable task, or for any change; paused, closed, sheds; overrides: number
--                      of overridden limits; resting: whether the keys have a time to live; rested: when that was set
--                      last; floor, top: see `fair_queue.lua`; checked, cursor: time and progress of the last
--                      comparison of the parts, see `damage.lua`
--   2 rows       hash  id -> a task as an array, see the names below; further elements are preserved
--   3 blobs      hash  "b"id -> record, "s"id -> attempts, "c"id -> checkpoint, "p"id -> progress, "r"id -> result
--   4 side       hash  "g"key -> state of a limit, "i"number -> limit queue, "k"keys -> number of a limit queue,
--                      "u"key -> holder of a unique key, "c"nonce -> leases of a claim, "n"nonce -> answer of a step,
--                      "t" -> the virtual times of tenants
--   5 schedules  hash  name -> schedule
--   6 ready      zset  pending tasks: "p" place id, or "l" limit queue place id, without scores
--   7 delayed    zset  scheduled tasks, by due time
--   8 leases     zset  tasks in flight, by the end of their leases
--   9 parked     zset  parked tasks, by sequence
--  10 dead       zset  dead letters, by sequence
--  11 completed  zset  by the time of their deletion
--  12 cancelled  zset  by the time of their deletion
--  13 sequences  zset  all tasks, by sequence
--  14 deadlines  zset  waiting tasks that have a deadline, by deadline
--  15 waits      zset  waiting tasks: place id, without scores; maintained once a task was shed
--  16 turns      zset  limit queues: the limit that they wait for, place of the first task, number; without scores
--  17 gates      zset  limits, by the time of their next update
--  18 ends       zset  fields of `side`, by the time of their deletion
--  19 tenants    zset  priority class ":" tenant, by the virtual end of its last task; absent while no task has a tenant
--  20 idle       zset  claims whose workers wait for a task, by time, see `hand_over.lua`; has a time to live
-- ARGV: 1 the time in seconds since the epoch, "" for the time of the server; 2 the channel for notifications, 3 the
-- command that publishes; 4 the arguments of the step (msgpack), then its arguments that are bytes.
--
-- Reply: "" and a head (msgpack: now, version, stirred, answer), then the parts of the answer that are bytes; or a word
-- that names a defect of the whole queue, and the defective part. A damaged part costs only that part, see `damage.lua`.
--
-- 1. Nothing is written before the end of a step, see `commit.lua`, except where a step needs an order that it has
--    changed itself. A step that may refuse does so before it changes anything, because a script cannot roll back.
-- 2. A task is in `rows`, in `sequences`, and in the zset of its state.

-- Constants: names in capitals that stand for a number or a key are replaced by their values before the script is sent.
-- Each local that a function uses costs time in each call, and there are many.

local META, ROWS, BLOBS, SIDE, SCHEDULES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local READY, DELAYED, LEASES, PARKS, DEAD = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local DONE, CANCELS, SEQUENCES, DEADLINES, WAITS = KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local TURNS, GATES, ENDS, TENANTS, IDLE = KEYS[16], KEYS[17], KEYS[18], KEYS[19], KEYS[20]

local FORMAT = 1
local QUIET, THROTTLE, AGES = 86400, 60, 3000000000 -- seconds; a longer time than AGES means for ever
local WAITS_FOR = 6 -- seconds that a worker waits for a task after its claim
local INF = 1/0
local EXACT = 9007199254740992 -- whole numbers below this are exact
local GO_ON = 1 -- for `checked`: the next step continues the comparison
local LATEST = 40000000000000 -- seconds since the epoch: a later time is damage
local LANES = 90000000000000 -- more limit queues than will ever exist
local STEPS = 100 -- more than the number of ways to finish an attempt, see `tasks.lua`
local ID, SEQ, STATE, EPOCH, DUE, WORKER, SETTLED, STEP, ENDED, REASON = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local CANCELLING, LANE, HAS, TYPE, NONCE, PRIORITY, DEADLINE, RETRIES, TIMEOUTS = 11, 12, 13, 14, 15, 16, 17, 18, 19
local CRASHES, UNIQUE, UNIQUE_FOR, TTL, LIMITS, CREATED = 20, 21, 22, 23, 24, 25
local TURN, TENANT, WEIGHT = 26, 27, 28 -- missing in rows of the first version
local PENDING, SCHEDULED, PARKED, IN_FLIGHT, COMPLETED, CANCELLED, DEAD_LETTER = 0, 1, 2, 3, 4, 5, 6
local STORY, CHECKPOINT, PROGRESS, RESULT = 1, 2, 4, 8
local HANDED = 16 -- set for a lease that `hand_over.lua` has made and no claim has confirmed
local HOME = {
  [PENDING] = READY, [SCHEDULED] = DELAYED, [PARKED] = PARKS, [IN_FLIGHT] = LEASES, [COMPLETED] = DONE, [CANCELLED] = CANCELS,
  [DEAD_LETTER] = DEAD,
}

local pack, unpacked = cmsgpack.pack, cmsgpack.unpack

local function exact(number)
  return string.format('%.17g', number)
end

-- Meta

local meta_fresh, meta = {}, { -- created at its full size, which is faster
  format = 0, sequence = 0, lanes = 0, version = 0, stirred = 0, hungry = 0, watched = 0, paused = 0, closed = 0, sheds = 0,
  overrides = 0, resting = 0, time = 0, rested = 0, floor = 0, top = 0,
}
do
  local names = { -- the whole numbers, then the others
    'format', 'sequence', 'lanes', 'version', 'stirred', 'hungry', 'watched', 'paused', 'closed', 'sheds', 'overrides',
    'resting', 'time', 'rested', 'floor', 'top',
  }
  local values, sum, damaged = redis.call('HMGET', META, unpack(names)), 0, false
  for index = 1, 16 do
    if values[index] then
      local number = tonumber(values[index]) or -1
      meta[names[index]], sum = number, sum + number
      damaged = damaged or number < 0 or (index < 13 and number % 1 ~= 0)
    end
  end
  if meta.format > FORMAT then
    return {'future', exact(meta.format)}
  end
  if damaged or not (sum < EXACT) or meta.lanes >= LANES then
    for index, name in ipairs(names) do
      local number = tonumber(values[index] or 0) or -1
      if not (0 <= number and number < EXACT) or (index < 13 and number % 1 ~= 0) or (name == 'lanes' and number >= LANES) then
        return {'damaged', name}
      end
    end
  end
end
if meta.format < FORMAT and redis.call('EXISTS', ROWS, READY, SEQUENCES) > 0 then
  return {'broken', ''}
end

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
if meta.time - 60 < now and now < meta.time then
  now = meta.time -- wait until a clock that was set back a little catches up
end

local function set(name, value)
  if meta[name] ~= value then
    meta[name], meta_fresh[name] = value, true
  end
end

local changed, makes_claimable = false, false

-- Hashes and zsets: writes are kept back until the value is needed again, or the step ends.

local function send(command, key, values)
  for first = 1, #values, 1000 do
    redis.call(command, key, unpack(values, first, math.min(first + 999, #values)))
  end
end

local puts = {[BLOBS] = {}, [SIDE] = {}, [SCHEDULES] = {}}

local function put(key, field, value)
  puts[key][field], changed = value, true
end

local function read(key, field)
  local value = puts[key][field]
  if value == nil then
    value = redis.call('HGET', key, field)
  end
  return value
end

local scores = {}

local function zput(key, member, score)
  local fresh = scores[key]
  if not fresh then
    fresh = {}
    scores[key] = fresh
  end
  fresh[member], changed = score, true
end

local function zdrop(key, member)
  zput(key, member, false)
end

local function write_zset(key)
  local fresh = scores[key]
  if not fresh then
    return
  end
  scores[key] = nil
  local added, dropped = {}, {}
  for member, score in pairs(fresh) do
    if score then
      added[#added + 1] = score
      added[#added + 1] = member
    else
      dropped[#dropped + 1] = member
    end
  end
  send('ZREM', key, dropped)
  send('ZADD', key, added)
end

local function write_zsets()
  for index = 6, 19 do
    write_zset(KEYS[index])
  end
end

local function count(key)
  write_zset(key)
  return redis.call('ZCARD', key)
end

local function due(key, most, bracket)
  write_zset(key)
  return redis.call('ZRANGEBYSCORE', key, '-inf', (bracket or '') .. exact(now), 'LIMIT', 0, most)
end

-- The order of claims as bytes, for zsets only: zsets compare bytes, and Lua compares by the locale.

local function complement(byte)
  return string.char(255 - string.byte(byte))
end

local function ordered(number)
  if number >= 0 then
    return '1' .. struct.pack('>d', number + 0)
  end
  return '0' .. (string.gsub(struct.pack('>d', number), '.', complement))
end

local PLACE = 34 -- bytes of a place

local function place_at(priority, deadline, turn, sequence)
  return ordered(priority) .. ordered(deadline) .. struct.pack('>dd', turn, sequence)
end

local function before(a, b)
  if a[1] ~= b[1] then
    return a[1] < b[1]
  elseif a[2] ~= b[2] then
    return a[2] < b[2]
  elseif a[3] ~= b[3] then
    return a[3] < b[3]
  end
  return a[4] < b[4]
end

local function order_of_row(row)
  return {row[PRIORITY], row[DEADLINE], row[TURN] or 0, row[SEQ]}
end

local function limit_queue_prefix(limit_queue)
  return string.format('l%014.0f', limit_queue)
end

local LANE_PREFIX = 15 -- bytes of a prefix

local places = {} -- by id: creating them takes longer than keeping them

local function place_of(row)
  local place = places[row[ID]]
  if not place then
    place = place_at(row[PRIORITY], row[DEADLINE], row[TURN] or 0, row[SEQ])
    places[row[ID]] = place
  end
  return place
end

local function member_of(row)
  if row[LANE] > 0 then
    return limit_queue_prefix(row[LANE]) .. place_of(row) .. row[ID]
  end
  return 'p' .. place_of(row) .. row[ID]
end
