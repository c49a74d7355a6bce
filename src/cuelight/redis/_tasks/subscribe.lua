-- Request a notification of changes. Arguments: {"hungry" for claimable tasks or "watched" for any change, version,
-- stirred}: the last numbers seen. If they are out of date, or a lease has ended, nothing is requested. Answer: whether a
-- notification will follow.

local asked = unpacked(ARGV[4])
local up_to_date = meta.version == asked[2]
if asked[1] == 'hungry' then
  up_to_date = meta.stirred == asked[3] and redis.call('ZCOUNT', LEASES, '-inf', '(' .. exact(now)) == 0
end
answer, wanting, tidy = up_to_date, up_to_date and asked[1] or nil, 'idle'
