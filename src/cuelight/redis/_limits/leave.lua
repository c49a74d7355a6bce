-- leave: remove a request that no longer waits, or that cannot use its admission. Its charge is refunded.
--
-- ARGV[2] is {id, costs, keep}. Answers {}. The request is remembered as one that left, in case it still asks.

local given = call('HGET', KEYS[4], op.id)
given = given and read(given)
local waiter = waiting_request(op.id)
if given and given.granted then
  refund(op.id, given.costs, given.tickets)
elseif waiter and waiter.tickets then
  refund(op.id, waiter.costs, waiter.tickets)
end
remove_request(op.id)
remember(op.id, pack({error = 'left'}))
advance()
save()
return pack({})
