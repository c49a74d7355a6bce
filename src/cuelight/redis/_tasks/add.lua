-- Add tasks. Arguments: {rows, most, shed}: the rows of new tasks, with the requested time in `due` and the delay in
-- `ended`; most is -1 for no bound. Bytes: the record of each. Answer: pairs of an outcome and an id.

local asked = unpacked(ARGV[4])
if meta.closed ~= 0 then
  return {'closed', ''}
end

local waiting, bound = 0, asked[2]
answer = {}
if bound >= 0 then
  waiting = count(READY) + count(DELAYED) + count(PARKS)
end

-- Maintain the order of shedding from now on.
local function keep_order()
  if meta.sheds == 1 then
    return
  end
  set('sheds', 1)
  write_zset(READY)
  for _, member in ipairs(redis.call('ZRANGE', READY, 0, -1)) do
    local skipped = string.sub(member, 1, 1) == 'p' and 1 or LANE_PREFIX
    zput(WAITS, string.sub(member, skipped + 1), 0)
  end
  for _, key in ipairs({DELAYED, PARKS}) do
    write_zset(key)
    local ids = redis.call('ZRANGE', key, 0, -1)
    load(ids)
    for _, id in ipairs(ids) do
      local row = cache[id]
      if row and row[STATE] < IN_FLIGHT then
        zput(WAITS, place_of(row) .. id, 0)
      end
    end
  end
end

local function last_waiting()
  for _ = 1, MOST_DROPPED do
    write_zset(WAITS)
    local member = redis.call('ZREVRANGE', WAITS, 0, 0)[1]
    local row = member and row_of(string.sub(member, PLACE + 1))
    if not member or (row and row[STATE] < IN_FLIGHT) then
      return row
    end
    drop_stale(WAITS, member, string.sub(member, PLACE + 1))
  end
end

local function room_for(row)
  if bound < 0 or waiting < bound then
    return true
  end
  if not asked[3] then
    return false
  end
  keep_order()
  local last = last_waiting()
  if not last or not before({row[PRIORITY], row[DEADLINE], 0, 0}, {last[PRIORITY], last[DEADLINE], 0, 0}) then
    return false
  end
  apply(last, DEAD_LETTER, 0, 'shed')
  waiting = waiting - 1
  return true
end

local function add_one(row, blob)
  local stored = row_of(row[ID])
  if broken[row[ID]] then
    return 'duplicate', row[ID] -- of an unreadable task
  elseif stored then
    return (row[NONCE] ~= '' and row[NONCE] == stored[NONCE]) and 'added' or 'duplicate', row[ID]
  end
  local holder = row[UNIQUE] and unique_owner(row[UNIQUE])
  if holder then
    return 'duplicate', holder
  end
  if not room_for(row) then
    return 'full', row[ID]
  end
  local delay = row[ENDED]
  row[ENDED] = 0
  if delay > 0 then
    row[DUE] = (row[DUE] ~= 0 and row[DUE] or now) + delay
  end
  insert(row, blob)
  waiting = waiting + 1
  return 'added', row[ID], row
end

-- Hand a task without limits that was added alone, while no other was pending, to a waiting worker.
local function offer(row, blob)
  if row[STATE] ~= PENDING or row[LIMITS] or meta.hungry ~= 1 or meta.paused ~= 0 or count(READY) ~= 1 then
    return
  end
  write_zsets() -- so that `hand_over` finds the tasks that are due
  local claim = hand_over(row, blob, now)
  if not claim then
    return
  end
  local due = row[DUE]
  row[STATE], row[DUE] = PENDING, 0
  change_state(row, IN_FLIGHT, due)
  started(row)
  keep_until('c' .. claim[1], pack({row[ID], row[EPOCH]}), due)
  makes_claimable = false
end

local ids = {}
for index, row in ipairs(asked[1]) do
  ids[index] = row[ID]
end
load(ids)
local inserted
for index, row in ipairs(asked[1]) do
  answer[2 * index - 1], answer[2 * index], inserted = add_one(row, ARGV[4 + index])
end
if inserted and #asked[1] == 1 then
  offer(inserted, ARGV[5])
end
