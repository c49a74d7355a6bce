-- End the membership of a node that has left, or whose lease has expired. From then on it can neither read nor send.
--
-- KEYS[1] format, KEYS[2] members, KEYS[3] names, KEYS[4] node, KEYS[5] inbox
--         (see join.lua, send.lua, register_name.lua)
-- KEYS[6] lost      hash: sender -> number of the last of its batches that the node had read; each sender deletes its
--                   field when it has read it
-- KEYS[7] ...       the same key of other lost nodes, which this node no longer needs
-- ARGV    identity, "1" to end it even if its lease has not expired, time to live of `lost` in ms
--
-- Returns 1 if the node is not a member now, 0 if its lease has not expired.
local identity, force, ttl = ARGV[1], ARGV[2], ARGV[3]
for index = 7, #KEYS do
  redis.call('HDEL', KEYS[index], identity)
end
local score = redis.call('ZSCORE', KEYS[2], identity)
if not score then
  return 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if force ~= '1' and tonumber(score) > now then
  return 0
end
-- Delete keys that have a wrong type, so that a damaged node can be removed.
for index, kind in pairs({[4] = 'hash', [6] = 'hash'}) do
  local found = redis.call('TYPE', KEYS[index]).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', KEYS[index])
  end
end
local fields = redis.call('HGETALL', KEYS[4])
local node = {}
for index = 1, #fields, 2 do
  node[fields[index]] = fields[index + 1]
end
for field in pairs(node) do
  if string.sub(field, 1, 5) == 'sent:' then
    local sender = string.sub(field, 6)
    if redis.call('ZSCORE', KEYS[2], sender) then
      redis.call('HSET', KEYS[6], sender, node['read:' .. sender] or '0')
    end
  elseif string.sub(field, 1, 5) == 'name:' then
    local name = string.sub(field, 6)
    local owner = redis.call('HGET', KEYS[3], name)
    if owner and string.sub(owner, 1, #identity + 1) == identity .. ' ' then
      redis.call('HDEL', KEYS[3], name)
    end
  end
end
redis.call('PEXPIRE', KEYS[6], ttl)
redis.call('DEL', KEYS[4], KEYS[5])
redis.call('ZREM', KEYS[2], identity)
if redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1])
end
return 1
