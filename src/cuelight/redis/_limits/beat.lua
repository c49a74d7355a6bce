-- beat: a party lives. With `held`, it tells which permits it has: it had been taken for dead. With `ended`, which
-- of those it told before it has no more.
--
-- ARGV[2] is {party, held, ended}. Answers {fresh: whether the party had been buried}.

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
