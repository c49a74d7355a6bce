-- Questions. Arguments: {which, ...}. Behind the reply: tasks, each as its row, record, story, checkpoint, progress and
-- result.

local LOOKED_AT = 1000 -- tasks in one step: the next step goes on
local ALL = {'b', 's', 'c', 'p', 'r'}
local asked = unpacked(ARGV[4])
local questions = {}

-- {ids} -> for each whether it is there.
function questions.get(ids)
  local there, found = {}, {}
  load(ids)
  for index, id in ipairs(ids) do
    there[index] = cache[id] and true or false
    found[#found + 1] = cache[id] or nil
  end
  return there, found
end

function questions.size()
  local sizes = {}
  for index, key in ipairs({READY, DELAYED, PARKS, LEASES, DONE, CANCELS, DEAD}) do
    if key == DONE or key == CANCELS then
      sizes[index] = redis.call('ZCOUNT', key, exact(now), '+inf') -- without those whose time to live is over
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

-- A query, its state a number or -1 -> where to go on; -1 if all were seen.
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

-- For each its name, spec and due time; behind the reply: row and record of each. The spec of one that cannot be read is
-- false, and its record all that there is.
function questions.schedules()
  local answer, rest = {}, {}
  local there = redis.call('HGETALL', SCHEDULES)
  for index = 1, #there, 2 do
    local name, raw = there[index], there[index + 1]
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

-- Again when what cannot be read has become a dead letter, so that it is seen.
function again()
  answer, shown, rest = questions[asked[1]](asked[2])
end

again()
