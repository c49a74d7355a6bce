-- Queries. Arguments: {which, ...}. After the reply come tasks, each as its row, record, attempts, checkpoint, progress and
-- result.

local LOOKED_AT = 1000 -- tasks in one step: the next step continues
local ALL = {'b', 's', 'c', 'p', 'r'}
local asked = unpacked(ARGV[4])
local questions = {}

-- {ids} -> for each whether it exists.
function questions.get(ids)
  local stored, found = {}, {}
  load(ids)
  for index, id in ipairs(ids) do
    stored[index] = cache[id] and true or false
    found[#found + 1] = cache[id] or nil
  end
  return stored, found
end

function questions.size()
  local sizes = {}
  for index, key in ipairs({READY, DELAYED, PARKS, LEASES, DONE, CANCELS, DEAD}) do
    if key == DONE or key == CANCELS then
      sizes[index] = redis.call('ZCOUNT', key, exact(now), '+inf') -- without those whose time to live has ended
    else
      sizes[index] = redis.call('ZCARD', key)
    end
  end
  return {sizes, meta.paused ~= 0, meta.closed ~= 0}
end

local function of_index(query, after)
  local key = HOME[query.state] or SEQUENCES
  if query.state == IN_FLIGHT and redis.call('ZCARD', LEASES) <= LOOKED_AT then
    local ids = redis.call('ZRANGE', LEASES, 0, -1)
    load(ids)
    table.sort(ids, function(a, b)
      return (cache[a] and cache[a][SEQ] or 0) < (cache[b] and cache[b][SEQ] or 0)
    end)
    return ids, true
  elseif query.state ~= PARKED and query.state ~= DEAD_LETTER then
    key = SEQUENCES
  end
  local found = redis.call('ZRANGEBYSCORE', key, '(' .. exact(after), '+inf', 'WITHSCORES', 'LIMIT', 0, LOOKED_AT)
  local ids, last = {}, after
  for index = 1, #found, 2 do
    ids[#ids + 1], last = found[index], tonumber(found[index + 1])
  end
  load(ids)
  return ids, #ids < LOOKED_AT, last
end

-- {query, with its state as a number or -1} -> where to continue; -1 at the end.
function questions.find(query)
  local ids, seen_all, last = of_index(query, query.after)
  local found = {}
  for _, id in ipairs(ids) do
    local row = cache[id]
    if row and row[SEQ] > query.after then
      if (query.state < 0 or row[STATE] == query.state)
        and (not query.type or row[TYPE] == query.type)
        and (not query.reason or row[REASON] == query.reason)
        and (not query.ended_before or (0 < row[ENDED] and row[ENDED] < query.ended_before)) then
        found[#found + 1] = row
        if #found == query.limit then
          return -1, found
        end
      end
    end
  end
  return seen_all and -1 or last, found
end

-- The name, spec and due time of each; after the reply come row and record of each. The spec of an unreadable schedule is
-- false, and its record all of its data.
function questions.schedules()
  local answer, rest = {}, {}
  local stored = redis.call('HGETALL', SCHEDULES)
  for index = 1, #stored, 2 do
    local name, raw = stored[index], stored[index + 1]
    local readable, kept = pcall(unpacked, raw)
    if readable and type(kept) == 'table' and type(kept[1]) == 'string' and readable_name(kept[1]) == kept[1]
      and type(kept[2]) == 'number' and type(kept[3]) == 'table' and type(kept[4]) == 'string' then
      answer[#answer + 1] = {name, kept[1], kept[2]}
      rest[#rest + 1] = pack(kept[3])
      rest[#rest + 1] = kept[4]
    else
      local readable_name = readable_name(name)
      if readable_name ~= name then
        put(SCHEDULES, name, false)
        put(SCHEDULES, readable_name, raw)
      end
      answer[#answer + 1] = {readable_name, false, 0}
      rest[#rest + 1] = ''
      rest[#rest + 1] = raw
    end
  end
  return answer, nil, rest
end

kinds = ALL

-- This runs again after unreadable tasks have become dead letters, so that they are included.
function run_again()
  answer, shown, rest = questions[asked[1]](asked[2])
end

run_again()
