-- renew: renew the lease of a party. A party that was considered dead sends in `held` the permits that it holds, and in
-- `ended` the permits that it sent before and no longer holds.
--
-- ARGV[2] is {party, held, ended}. Answers {fresh: whether the party had been removed}.

call('ZADD', KEYS[6], 'XX', whole(now + lease * 1000), op.party)
for _, id in ipairs(op.held or {}) do
  call('ZADD', KEYS[5], 'NX', whole(now), id)
end
for _, id in ipairs(op.ended or {}) do
  call('ZREM', KEYS[5], id)
end
advance()
local fresh = renew(op.party)
save()
return pack({fresh = fresh})
