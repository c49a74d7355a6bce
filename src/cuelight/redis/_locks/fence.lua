-- Set a value, unless it was set with a greater fencing token.
--
-- KEYS, in one slot: 1 the value, a plain string; 2 the greatest token with which it was set, as decimal text
-- ARGV: 1 token, 2 value, 3 time to live of both in ms, 0 for none
-- Answer: {1 if it was set, the greatest token}. May be repeated: the same token sets the same value.

local token, life = tonumber(ARGV[1]), tonumber(ARGV[3])
if not token or token < 1 or not life or life < 0 then return redis.error_reply('BADARG token or time to live') end
local known = tonumber(string.match(redis.call('GET', KEYS[2]) or '0', '^%d+$')) -- rejects nan and 1e300
if not known then return redis.error_reply('CORRUPT fence at ' .. KEYS[2]) end
if token < known then return { 0, string.format('%.0f', known) } end
for index, text in ipairs({ ARGV[2], ARGV[1] }) do
  if life > 0 then
    redis.call('SET', KEYS[index], text, 'PX', ARGV[3])
  else
    redis.call('SET', KEYS[index], text)
  end
end
return { 1, ARGV[1] }
