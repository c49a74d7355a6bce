-- Delete the processed entries of a node's inbox, and return the next ones. Only members can read: a node that was
-- declared lost has read nothing since.
--
-- KEYS[1] members, KEYS[2] node, KEYS[3] inbox   (see join.lua and send.lua)
-- ARGV    identity, id of the last processed entry ("0-0": none), the id after it, bytes received up to that entry,
--         maximum number of entries
--
-- Returns 0 if this node is no longer a member, or if its keys were damaged or deleted so that entries are lost. It then
-- has to join again, which notifies the callers that wait for it. Else the entries. Sending it again returns the same
-- ones, or more. If there are fewer than the maximum, the next arrival is announced on the channel of the node.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
-- A damaged count is read as 0, so that the node can still receive.
local function count(text)
  local found = tonumber(text or '0')
  return found and found >= 0 and found < 2 ^ 53 and found or 0 -- excludes nan
end

-- Whether a key has a wrong type.
local function is_damaged(answer)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, 'WRONGTYPE', 1, true) then
      return true
    end
    error(answer.err)
  end
end

local node = redis.pcall('HMGET', KEYS[2], 'in', 'out')
if is_damaged(node) then
  return 0
end
local came = count(node[1])
local total = math.min(count(ARGV[4]), came) -- a forged entry may claim more
if total > count(node[2]) then
  if is_damaged(redis.pcall('XTRIM', KEYS[3], 'MINID', ARGV[3])) then
    return 0
  end
  redis.call('HSET', KEYS[2], 'out', string.format('%.0f', total))
end
local entries = redis.pcall('XRANGE', KEYS[3], '(' .. ARGV[2], '+', 'COUNT', ARGV[5])
if is_damaged(entries) or (#entries == 0 and came > count(ARGV[4])) then
  return 0
end
if #entries < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[2], 'asleep', '1')
end
for _, entry in ipairs(entries) do
  local sender, number = entry[2][2], count(entry[2][4])
  if number > 0 then -- 0 if no node wrote the entry
    local read = redis.call('HGET', KEYS[2], 'read:' .. sender)
    if count(read) < number then
      redis.call('HSET', KEYS[2], 'read:' .. sender, string.format('%.0f', number))
    end
  end
end
return entries
