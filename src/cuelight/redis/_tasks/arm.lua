-- Have others tell what changes. Arguments: {"hungry" or "watched", version, stirred}: what was seen last. If that is
-- out of date, or a lease has ended, nobody has to tell. Answer: whether others will tell.

local asked = unpacked(ARGV[4])
local up_to_date = meta.version == asked[2]
if asked[1] == 'hungry' then
  up_to_date = meta.stirred == asked[3] and redis.call('ZCOUNT', LEASES, '-inf', '(' .. exact(now)) == 0
end
answer, wanting, tidy = up_to_date, up_to_date and asked[1] or nil, 'idle'
