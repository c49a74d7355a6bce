-- Forget what a node has dealt with, and give it what comes next. Only members can read: whoever was declared lost has
-- read nothing since.
--
-- KEYS[1] members, KEYS[2] node, KEYS[3] inbox   (see join.lua and send.lua)
-- ARGV    identity, id of the last entry that was dealt with ("0-0": none), the id after it, bytes that had come with
--         it, how many entries at most
--
-- Returns 0 if this node is no member any more, else the entries. Sent again, it returns the same ones, or more. If
-- there were fewer than asked for, the next that comes is told on the channel of the node.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
local done = tonumber(redis.call('HGET', KEYS[2], 'out') or '0')
if tonumber(ARGV[4]) > done then
  redis.call('XTRIM', KEYS[3], 'MINID', ARGV[3])
  redis.call('HSET', KEYS[2], 'out', ARGV[4])
end
local entries = redis.call('XRANGE', KEYS[3], '(' .. ARGV[2], '+', 'COUNT', ARGV[5])
if #entries < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[2], 'asleep', '1')
end
for _, entry in ipairs(entries) do
  local sender, number = entry[2][2], entry[2][4]
  if tonumber(number) then -- else somebody else has put it there
    local read = redis.call('HGET', KEYS[2], 'read:' .. sender)
    if not read or tonumber(read) < tonumber(number) then
      redis.call('HSET', KEYS[2], 'read:' .. sender, number)
    end
  end
end
return entries
