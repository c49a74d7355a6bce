-- ask: admit a request, or add it to the queue, or answer when it could be admitted. A waiting request asks again.
--
-- ARGV[2] is {id, party, costs, wait: microseconds that it would wait, 0 to be admitted at once or not at all,
-- at_most: the most units of the first limit, if more than its cost may be charged, got: requests whose answers have
-- arrived, keep: whether hash 4 needs more time, word: the command that publishes to its party if that is subscribed,
-- version: of the limits that the caller knows}.
-- Answers {granted = true, tickets, costs, report...}, or {granted = false, wait, queued, report...}. A queued request
-- waits until it is notified or `wait` is over, and asks again.

if op.got and #op.got > 0 then
  call('HDEL', KEYS[4], unpack(op.got))
end
local earlier_answer = call('HGET', KEYS[4], op.id)
if earlier_answer then
  return earlier_answer
end
local waiter = waiting_request(op.id)
for i = 1, count do
  if op.costs[i] > meter.max_cost(i) and not waiter then
    return pack(report({error = 'cost', limit = i}))
  end
end
if state.entries > 0 or permits > 0 then
  call('ZADD', KEYS[6], 'XX', whole(now + lease * 1000), op.party)
end
advance()

local function granted(costs, tickets)
  local fresh = permits > 0 and renew(op.party)
  local answer = report({granted = true, tickets = tickets, costs = costs, fresh = fresh})
  return remember(op.id, pack(answer))
end

-- Add the request to the queue. Its place contains the total costs of all requests before it.
local function enqueue()
  local place = {costs = op.costs, before = state.asked, turn = state.turn + 1}
  state.turn, state.waiting, state.entries, state.asked = place.turn, state.waiting + 1, state.entries + 1, {}
  for i = 1, count do
    state.asked[i] = place.before[i] + op.costs[i]
  end
  call('ZADD', KEYS[2], whole(place.turn), op.id)
  return place
end

local function wait()
  if state.waiting == 0 then
    state.asked = {}
    for i = 1, count do
      state.asked[i] = 0
    end
  end
  local soon = estimate(op.costs, waiter and waiter.before or state.asked, waiter and waiter.turn or state.turn + 1)
  local answer = {granted = false, wait = soon, queued = false, fresh = false}
  -- NEVER: it depends on when others release a permit, which is not known and may be in time.
  if waiter or (op.wait > 0 and (soon <= op.wait or soon >= NEVER)) then
    waiter = waiter or enqueue()
    waiter.armed, waiter.word = now + soon, op.word
    call('HSET', KEYS[3], op.id, pack(waiter))
    answer.queued, answer.fresh = true, renew(op.party)
  end
  return pack(report(answer))
end

local answer
waiter = waiter and waiting_request(op.id)
if waiter and waiter.tickets then
  remove_request(op.id)
  answer = granted(waiter.costs, waiter.tickets)
elseif not waiter and state.waiting == 0 and due_of(op.costs) <= 0 then
  local costs = op.costs
  if op.at_most then
    costs[1] = max(costs[1], min(op.at_most, meter.remaining(1)))
  end
  answer = granted(costs, admit(op.id, costs, 0))
else
  answer = wait()
end
save()
return answer
