-- Register a name for an actor, or remove it. Sending it again changes nothing more.
--
-- KEYS[1] members, KEYS[2] names, KEYS[3] node   (see join.lua); names is a hash: name -> identity, a space, address
-- ARGV    identity, name, "<identity> <address>", time to live of keys in ms, "1" to register and "0" to remove
--
-- Returns {"ok"}, {"expelled"}, or {"taken", the value of the owner}.
local identity, name, value = ARGV[1], ARGV[2], ARGV[3]
local present = redis.call('HGET', KEYS[2], name)
if ARGV[5] == '0' then
  if present == value then
    redis.call('HDEL', KEYS[2], name)
    redis.call('HDEL', KEYS[3], 'name:' .. name)
  end
  return {'ok'}
end
if not redis.call('ZSCORE', KEYS[1], identity) then
  return {'expelled'}
end
if present and present ~= value then
  local owner = string.match(present, '^(%S+) %d+ ') -- a name with a damaged address has no owner
  if owner and redis.call('ZSCORE', KEYS[1], owner) then
    return {'taken', present}
  end
end
redis.call('HSET', KEYS[2], name, value)
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('HSET', KEYS[3], 'name:' .. name, '1')
return {'ok'}
