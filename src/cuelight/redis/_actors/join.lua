-- Enter a cluster under a new identity. Sending it again changes nothing more.
--
-- KEYS[1] format    the number of the layout of all these keys
-- KEYS[2] members   sorted set: identity -> end of its lease, in ms of the server's time
-- KEYS[3] node      hash of this node: about, endpoint, asleep, in, out, sent:<sender>, read:<sender>, name:<name>
-- ARGV    identity, lease in ms, time to live of keys in ms, format, description of this node, its endpoint for
--         direct connections ("" if it has none)
--
-- Returns {"ok"}, or {"format", the stored number}.
local identity, lease, ttl, format, about, endpoint = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local present = redis.call('GET', KEYS[1])
if present and present ~= format then
  return {'format', present}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], format, 'PX', ttl)
redis.call('ZADD', KEYS[2], string.format('%.0f', now + lease), identity)
redis.call('PEXPIRE', KEYS[2], ttl)
redis.call('HSET', KEYS[3], 'about', about, 'asleep', '1')
if endpoint ~= '' then
  redis.call('HSET', KEYS[3], 'endpoint', endpoint)
end
redis.call('PEXPIRE', KEYS[3], ttl)
return {'ok'}
