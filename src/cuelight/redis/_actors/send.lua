-- Put one batch into the inbox of a node. Sending it again changes nothing more.
--
-- KEYS[1] members   (see join.lua)
-- KEYS[2] node      of the target; sent:<sender> is the number of the last batch of that sender, in and out count the
--                   bytes received and processed so far
-- KEYS[3] inbox     stream of the target: s sender, q number of the batch, t bytes received so far, v format, p payload
-- ARGV    sender, target, number of the batch, format of the payload, payload, maximum bytes in the inbox, time to
--         live of keys in ms, command to publish with, channel of the target
--
-- Returns "ok", "full" (nothing was done), "gone" (the target is not a member) or "expelled" (the sender is not one).
-- A damaged count is read as 0, so that the node can still receive.
local function count(text)
  local found = tonumber(text or '0')
  return found and found >= 0 and found < 2 ^ 53 and found or 0 -- excludes nan
end

local sender, target, number, payload = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[5]
if not redis.call('ZSCORE', KEYS[1], sender) then
  return 'expelled'
end
if not redis.call('ZSCORE', KEYS[1], target) then
  return 'gone'
end
local node = redis.call('HMGET', KEYS[2], 'sent:' .. sender, 'in', 'out', 'asleep')
if count(node[1]) >= number then
  return 'ok'
end
local total, done = count(node[2]), count(node[3])
if total > done and total - done + #payload > tonumber(ARGV[6]) then
  return 'full'
end
local after = string.format('%.0f', total + #payload)
redis.call('XADD', KEYS[3], '*', 's', sender, 'q', ARGV[3], 't', after, 'v', ARGV[4], 'p', payload)
redis.call('HSET', KEYS[2], 'sent:' .. sender, ARGV[3], 'in', after, 'asleep', '0')
redis.call('PEXPIRE', KEYS[3], ARGV[7])
if node[4] ~= '0' then
  redis.call(ARGV[8], ARGV[9], '')
end
return 'ok'
