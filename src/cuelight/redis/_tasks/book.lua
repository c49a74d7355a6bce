-- The book of one queue: what it keeps, read when it is asked for and written once, when a step ends.
--
-- KEYS, all in one slot, the same for each script:
--   1 meta       hash  format, sequence, lanes: counters; version, stirred: how often anything has changed, and how often
--                      something may have become claimable; time: the latest that a step has seen; hungry, watched:
--                      somebody waits to be told; paused, closed, sheds; overrides: how many; resting: its keys have
--                      a time to live; rested: when that began last; floor, top: see `tenants.lua`; checked, cursor:
--                      when the parts were compared last, and how far they were gone through, see `damage.lua`
--   2 rows       hash  id -> a task as an array, see the names below; elements behind them are kept as they are
--   3 blobs      hash  "b"id -> record, "s"id -> story, "c"id -> checkpoint, "p"id -> progress, "r"id -> result
--   4 side       hash  "g"key -> limit, "i"number -> lane, "k"keys -> number of a lane, "u"key -> holder of a unique
--                      key, "c"nonce -> what a claim was given, "n"nonce -> what a step was answered,
--                      "t" -> the virtual times of tenants
--   5 schedules  hash  name -> periodic work
--   6 ready      zset  pending tasks: "p" place id, or "l" lane place id, without scores
--   7 delayed    zset  scheduled tasks, by due time
--   8 leases     zset  tasks in flight, by the end of their leases
--   9 parked     zset  parked tasks, by sequence
--  10 dead       zset  dead letters, by sequence
--  11 completed  zset  by the time when they are forgotten
--  12 cancelled  zset  by the time when they are forgotten
--  13 sequences  zset  all tasks, by sequence
--  14 deadlines  zset  tasks that wait and have a deadline, by that
--  15 waits      zset  tasks that wait: place id, without scores; kept from the first task on that was shed
--  16 turns      zset  lanes: what they wait on, place of the first task, number; without scores
--  17 gates      zset  limits, by the time to look at them again
--  18 ends       zset  fields of `side`, by the time when they are forgotten
--  19 tenants    zset  line ":" tenant, by where its last task ends; not there while nobody has a tenant
--  20 idle       zset  claims whose workers wait for a task, by time, see `hand_over.lua`; has a time to live
-- ARGV: 1 the time in seconds since the epoch, "" for the time of the server; 2 the channel for hints, 3 the command
-- that publishes; 4 the arguments of the step (msgpack), then what is bytes in them.
--
-- Reply: "" and a head (msgpack: now, version, stirred, answer), then what is bytes; or a word that says what is wrong
-- with the whole queue, and which part of it. What is wrong with a part costs that part, see `damage.lua`.
--
-- 1. Nothing is written before the end of a step, `reply.lua`, but where an order must be read that the same step has changed; and
--    what a step may refuse it refuses before it changes anything: a script takes nothing back.
-- 2. A task is in `rows`, in `sequences`, and in the one zset of its state.

-- Constants: names in capitals that stand for a number or a key are replaced before the script is sent. A local that a
-- function uses costs each call, and there are many.

local META, ROWS, BLOBS, SIDE, SCHEDULES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local READY, DELAYED, LEASES, PARKS, DEAD = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local DONE, CANCELS, SEQUENCES, DEADLINES, WAITS = KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local TURNS, GATES, ENDS, TENANTS, IDLE = KEYS[16], KEYS[17], KEYS[18], KEYS[19], KEYS[20]

local FORMAT = 1
local QUIET, THROTTLE, AGES = 86400, 60, 3000000000 -- seconds; what is kept for ages is kept for ever
local WAITS_FOR = 6 -- seconds that a worker waits for a task after its claim
local INF = 1/0
local EXACT = 9007199254740992 -- whole numbers below this are exact
local GO_ON = 1 -- for `checked`: the parts are to be gone through at once
local LATEST = 40000000000000 -- seconds since the epoch: what claims to be later is no time
local LANES = 90000000000000 -- more than there will be
local STEPS = 100 -- more than there are ways in which an attempt is settled, see `tasks.lua`
local ID, SEQ, STATE, EPOCH, DUE, WORKER, SETTLED, STEP, ENDED, REASON = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local CANCELLING, LANE, HAS, TYPE, NONCE, PRIORITY, DEADLINE, RETRIES, TIMEOUTS = 11, 12, 13, 14, 15, 16, 17, 18, 19
local CRASHES, UNIQUE, UNIQUE_FOR, TTL, LIMITS, CREATED = 20, 21, 22, 23, 24, 25
local TURN, TENANT, WEIGHT = 26, 27, 28 -- missing in rows of the first version
local PENDING, SCHEDULED, PARKED, IN_FLIGHT, COMPLETED, CANCELLED, DEAD_LETTER = 0, 1, 2, 3, 4, 5, 6
local STORY, CHECKPOINT, PROGRESS, RESULT = 1, 2, 4, 8
local HANDED = 16 -- behind these: a lease that `hand_over.lua` has made and no claim has confirmed
local HOME = {
  [PENDING] = READY, [SCHEDULED] = DELAYED, [PARKED] = PARKS, [IN_FLIGHT] = LEASES, [COMPLETED] = DONE, [CANCELLED] = CANCELS,
  [DEAD_LETTER] = DEAD,
}

local pack, unpacked = cmsgpack.pack, cmsgpack.unpack

local function exact(number)
  return string.format('%.17g', number)
end

-- Meta

local meta_fresh, meta = {}, { -- made at its full size, which is faster
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
  now = meta.time -- a clock that is set back by little is waited out
end

local function set(name, value)
  if meta[name] ~= value then
    meta[name], meta_fresh[name] = value, true
  end
end

local changed, stirs = false, false

-- Hashes and zsets: what was written is kept until it is asked for again, or the step ends.

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

-- The order of claims, as bytes that sort in it (zsets compare bytes, Lua compares by the locale: only for zsets).

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

local function head_of(row)
  return {row[PRIORITY], row[DEADLINE], row[TURN] or 0, row[SEQ]}
end

local function lane_prefix(lane)
  return string.format('l%014.0f', lane)
end

local LANE_PREFIX = 15 -- bytes of a prefix

local places = {} -- by id: to make them takes longer than to keep them

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
    return lane_prefix(row[LANE]) .. place_of(row) .. row[ID]
  end
  return 'p' .. place_of(row) .. row[ID]
end
