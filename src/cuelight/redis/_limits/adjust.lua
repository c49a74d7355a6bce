-- adjust: change the costs of a request to the real ones, and record whether it has ended.
--
-- ARGV[2] is {id: of the request, was, costs, ended, keep; if the costs change also tickets, and as: the name of this
-- amendment}. Answers {tickets}: the new tickets.

local earlier_answer = op.as and call('HGET', KEYS[4], op.as)
if earlier_answer then
  return earlier_answer
end
local tickets = op.tickets
for i = 1, op.as and count or 0 do
  if op.was[i] ~= op.costs[i] then
    tickets[i] = meter.adjust(i, tickets[i], op.was[i], op.costs[i], op.id)
  end
end
if op.ended then
  call('ZREM', KEYS[5], op.id)
end
advance()
save()
local answer = pack({tickets = tickets})
return op.as and remember(op.as, answer) or answer
