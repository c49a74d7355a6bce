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
  return {sizes, meta.paused == 1, meta.closed == 1}
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
  local ids = redis.call('ZRANGEBYSCORE', key, '(' .. exact(after), '+inf', 'LIMIT', 0, LOOKED_AT)
  load(ids)
  return ids, #ids < LOOKED_AT
end

-- A query, its state a number or -1 -> where to go on; -1 if all were seen.
function questions.find(query)
  local ids, seen_all = of_index(query, query.after)
  local found, last = {}, query.after
  for _, id in ipairs(ids) do
    local row = cache[id]
    if row and row[SEQ] > query.after then
      last = row[SEQ]
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

-- For each its name, spec and due time; behind the reply: row and record of each.
function questions.schedules()
  local answer, rest = {}, {}
  local there = redis.call('HGETALL', SCHEDULES)
  for index = 1, #there, 2 do
    local kept = unpacked(there[index + 1])
    answer[#answer + 1] = {there[index], kept[1], kept[2]}
    rest[#rest + 1] = pack(kept[3])
    rest[#rest + 1] = kept[4]
  end
  return answer, nil, rest
end

local answer, found, rest = questions[asked[1]](asked[2])
close_step()
local reply = {'', head(answer)}
for _, value in ipairs(rest or {}) do
  reply[#reply + 1] = value
end
return reply_with(reply, found or {}, ALL)
