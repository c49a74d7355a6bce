-- Renew the lease of a node, and report on other nodes.
--
-- KEYS[1] format, KEYS[2] members, KEYS[3] names, KEYS[4] node, KEYS[5] inbox   (see join.lua and send.lua)
-- ARGV    identity, lease in ms, time to live of keys in ms, identities of the other nodes to check
--
-- Returns {0} if this node is no longer a member; else {1, the checked nodes that are not members, members whose leases
-- have expired, ms until the first of the other leases expires or -1}.
local identity, lease, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if not redis.call('ZSCORE', KEYS[2], identity) then
  return {0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], string.format('%.0f', now + lease), identity)
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl)
end
local gone = {}
for index = 4, #ARGV do
  if not redis.call('ZSCORE', KEYS[2], ARGV[index]) then
    gone[#gone + 1] = ARGV[index]
    redis.call('HDEL', KEYS[4], 'sent:' .. ARGV[index], 'read:' .. ARGV[index])
  end
end
local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, 16)
local first, soonest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES'), -1
if first[1] and first[1] ~= identity then
  soonest = math.max(0, tonumber(first[2]) - now)
end
return {1, gone, expired, soonest}
