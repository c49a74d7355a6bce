-- amend: what a request really costs, and whether it has ended.
--
-- ARGV[2] is {id: of the request, as: of this amendment, was, costs, tickets, ended, got}.
-- Answers {tickets}.

if op.got and #op.got > 0 then
  call('HDEL', KEYS[4], unpack(op.got))
end
local again = op.as and call('HGET', KEYS[4], op.as)
if again then
  return again
end
local tickets = op.tickets
for i = 1, count do
  if op.was[i] ~= op.costs[i] then
    tickets[i] = meter.amend(i, tickets[i], op.was[i], op.costs[i], op.id)
  end
end
if op.ended then
  call('ZREM', KEYS[5], op.id)
end
advance()
save()
local answer = pack({tickets = tickets})
return op.as and remember(op.as, answer) or answer
