-- The queue of waiting requests and the admission of requests, by the same rules as in one process.
--
-- 1. Requests are admitted in the order of arrival: the first as soon as its limits allow it, and no other before it.
--    Every script admits all requests that are due, of any party.
-- 2. A request is charged in all limits or in none.
-- 3. The first in the queue has a timer that is not too late, or is notified over the channel of an earlier turn.
-- 4. A party whose lease has ended has no waiting requests and no permits.

local count = #rows
local notifications = {}

for i = 1, count do
  meter.step(i)
end
elapsed, clock_went_back = 0, false

local function party_of(id)
  return string.match(id, '^[^:]+')
end

-- Notify a request, if its party is subscribed and has sent the command for publishing, which differs in a cluster.
local function notify(id, waiter)
  if waiter.word and id ~= op.id then
    local party = party_of(id)
    local to = notifications[party] or {word = waiter.word, ids = {}}
    to.ids[#to.ids + 1] = id
    notifications[party] = to
  end
end

local function waiting_request(id)
  local packed = state.entries > 0 and call('HGET', KEYS[3], id)
  return packed and read(packed)
end

local function first()
  return call('ZRANGE', KEYS[2], 0, 0)[1]
end

-- Microseconds until a permit is free after `ahead` other waiting requests.
local function permit_due(ahead)
  if permits == 0 then
    return -NEVER
  end
  local held = call('ZCARD', KEYS[5])
  return (held == 0 or held + ahead + 1 <= permits) and 0 or NEVER
end

-- Microseconds until the first request in the queue can be admitted; may be negative. Limits in which it costs nothing
-- do not delay it.
local function due_of(costs)
  local due = max(state.pause, permit_due(0))
  for i = 1, count do
    if costs[i] > 0 then
      due = max(due, meter.available_in(i, costs[i], 0))
    end
  end
  return due
end

-- Microseconds until a request is admitted after all requests before it. Never too late, unless one of them leaves.
local function estimate(costs, before, turn)
  local due, served, ahead = max(0, state.pause), before, 0
  if state.waiting > 0 then
    local head = waiting_request(first())
    served, ahead = head.before, turn - head.turn
    due = max(due, due_of(head.costs))
  end
  for i = 1, count do
    if costs[i] > 0 or before[i] > served[i] then
      due = max(due, meter.available_in(i, costs[i], before[i] - served[i]))
    end
  end
  return max(due, permit_due(ahead))
end

-- Admit a request. Returns its tickets.
local function admit(id, costs, late)
  local tickets = {}
  for i = 1, count do
    tickets[i] = meter.charge(i, costs[i], late, id)
  end
  if permits > 0 then
    call('ZADD', KEYS[5], whole(now), id)
  end
  return tickets
end

-- Refund the charge of a request, and release its permit.
local function refund(id, costs, tickets)
  for i = 1, count do
    if costs[i] > 0 then
      meter.adjust(i, tickets[i], costs[i], 0, id)
    end
  end
  call('ZREM', KEYS[5], id)
end

-- Remove a request from the waiting ones, whether or not it was admitted.
local function remove_request(id)
  if call('ZREM', KEYS[2], id) == 1 then
    state.waiting = state.waiting - 1
  end
  state.entries = state.entries - call('HDEL', KEYS[3], id)
end

-- Renew the lease of a party. Returns true if the party is new, or had been removed.
local function renew(party)
  local fresh = call('ZADD', KEYS[6], whole(now + lease * 1000), party) == 1
  for key = 2, 6 do
    if key ~= 4 then
      call('PEXPIRE', KEYS[key], whole(2 * lease + RECENT))
    end
  end
  return fresh
end

-- Remove the parties whose leases have ended, with their waiting requests and permits.
local function remove_dead_parties()
  local dead = {}
  for _, party in ipairs(call('ZRANGEBYSCORE', KEYS[6], '-inf', whole(now))) do
    dead[party] = true
    call('ZREM', KEYS[6], party)
  end
  if next(dead) then
    for _, id in ipairs(call('HKEYS', KEYS[3])) do
      if dead[party_of(id)] then
        local waiter = waiting_request(id)
        if waiter.tickets then
          refund(id, waiter.costs, waiter.tickets)
        end
        remove_request(id)
      end
    end
    for _, id in ipairs(call('ZRANGE', KEYS[5], 0, -1)) do
      if dead[party_of(id)] then
        call('ZREM', KEYS[5], id)
      end
    end
  end
end

-- Admit all requests that are due, and make sure that the timer of the next one is not too late.
local function advance()
  if state.waiting == 0 and permits == 0 then
    return
  end
  remove_dead_parties()
  for _ = 1, 1000 do
    local head = first()
    if not head then
      state.waiting = 0
      return
    end
    local waiter = waiting_request(head)
    local due = due_of(waiter.costs)
    if due > 0 then
      if now + due < waiter.armed then
        waiter.armed = now + due
        call('HSET', KEYS[3], head, pack(waiter))
        notify(head, waiter)
      end
      return
    end
    call('ZREM', KEYS[2], head)
    state.waiting = state.waiting - 1
    waiter.tickets = admit(head, waiter.costs, min(LATE, -due))
    call('HSET', KEYS[3], head, pack(waiter))
    notify(head, waiter)
  end
  local head = first()
  if head then -- the rest in another step: the server serves no other client while a script runs
    notify(head, waiting_request(head))
  end
end

-- Remember an answer, for as long as the same call may be sent again. The caller says when the key needs more time.
local function remember(id, answer)
  call('HSET', KEYS[4], id, answer)
  if op.keep or not raw then
    call('PEXPIRE', KEYS[4], RECENT)
  end
  return answer
end

-- Write the state, and notify the requests whose turn came.
local function save()
  local unused = max(0, state.pause)
  for i = 1, count do
    unused = max(unused, meter.unused(i))
  end
  local keep = ceil(unused / 1000) + RECENT
  if state.waiting > 0 then
    keep = max(keep, 2 * lease + RECENT)
  end
  if state.own then
    keep = max(keep, OVERRIDE)
  end
  call('SET', KEYS[1], pack(state), 'PX', whole(keep))
  for party, to in pairs(notifications) do
    call(to.word, config[5] .. party, table.concat(to.ids, ' '))
  end
end

-- Add to an answer the remaining amounts, the time until the limiter is as if unused, and the limits, if the caller
-- has another version of them.
local function report(answer)
  local unused, open = max(0, state.pause), state.waiting == 0 and state.pause <= 0
  answer.left = {}
  for i = 1, count do
    answer.left[i] = open and meter.remaining(i) or 0
    unused = max(unused, meter.unused(i))
  end
  answer.unused, answer.version = unused, state.version
  if op.version ~= state.version then
    answer.rows, answer.permits, answer.numbers = rows, permits, state.own and state.own[3]
  end
  return answer
end
