-- So much room, held by members under leases, and a line of those who wait: locks, semaphores and read-write locks.
--
-- KEYS, all under one hash tag; each lives for TTL after the last call, longer than any lease:
--   1 state    hash: v (format), cap, used, fence, seq, notbefore, expired
--   2 held     zset: member -> when its lease ends (ms)
--   3 line     zset: member -> its ticket; the lowest is next
--   4 members  hash: member -> "state:number:weight:lease:alive:delay:fence", see below
--   5 gone     zset: member -> until when it is remembered that it has left (ms)
-- ARGV: 1 operation, 2 first part of the channels, 3 capacity,
--   4 count of lowerings, then for each of them: member, number, weight that is left to it (0 gives it back)
--   then for `acquire`: member, number, weight, lease, alive, delay, 1 to stand before others, 1 to wait in line
--        for `renew`: count, then for each: member, number, lease
--        for `lower` and `look`: nothing
--   Times are ms. A member is "process/slot"; its channel is the first part and the process.
-- Answer: {outcomes of the lowerings, ...}: 1 it held, 0 it did not (any more), 2 it left the line; then of
--   acquire: 1 granted | 0 not yet | -1 it was given back already; fence, ms until it is worth a look, place in the
--   line or -1, a member that holds; of renew: a list of 1 or 0; of look: capacity, used, expired, fence, ms since
--   1970, what is held {member, weight, ms left, fence}..., the line {member, weight}...
--
-- A member is in one state: q waits in line; h holds; d gave back what it held; x left otherwise; e its time ran out.
-- So each is in exactly one of line, held and gone. The number grows with each acquisition of a member: what comes
-- late, or twice, is told from what is new.
--
-- 1. used is the sum of what is held, and no more than the capacity.
-- 2. A fence is given once, and is greater than all before; also when this state was lost, as long as the clock of
--    the server is not behind the last grant: it is at least the time in microseconds.
-- 3. Who comes finds room and no line, or the end of the line. The head of a line at rest does not fit.
-- 4. Any call may be repeated with the same arguments, and then says the same.

local state, held, line, members, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local FORMAT, CLAIM, MEMORY, TTL, LAST = 1, 1000, 60000, 7200000, 1099511627776

local function text(number) return string.format('%.0f', number) end

-- Arguments, before anything is written.

local op, channels, cap, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local own = 5 + 3 * count

local function number(index, least)
  local found = tonumber(ARGV[index])
  if not found or found < least or found ~= math.floor(found) then
    error('BADARG argument ' .. index .. ' is no whole number from ' .. least .. ': ' .. tostring(ARGV[index]))
  end
  return found
end

number(3, 1)
for index = 5, own - 1, 3 do number(index + 1, 1); number(index + 2, 0) end
local me, my = ARGV[own], {}
if op == 'acquire' then
  my = { n = number(own + 1, 1), w = number(own + 2, 1), lease = number(own + 3, 1), delay = number(own + 5, 0) }
  number(own + 4, 1)
  if my.w > cap then return redis.error_reply('BADARG weight ' .. my.w .. ' of ' .. cap) end
elseif op == 'renew' then
  for index = own + 1, own + 3 * number(own, 0), 3 do number(index + 1, 1); number(index + 2, 1) end
elseif op ~= 'lower' and op ~= 'look' then
  return redis.error_reply('BADARG operation ' .. tostring(op))
end

-- State.

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)
local known = redis.call('HMGET', state, 'v', 'cap', 'used', 'fence', 'seq', 'notbefore', 'expired')
if tonumber(known[1] or FORMAT) > FORMAT then
  return redis.error_reply('FUTURE format ' .. known[1] .. ' of a lock, this script knows ' .. FORMAT)
end
local kept = tonumber(known[2]) or cap
local used, fence, seq = tonumber(known[3] or 0), tonumber(known[4] or 0), tonumber(known[5] or 0)
local notbefore, expired = tonumber(known[6] or 0), tonumber(known[7] or 0)

local function read(member)
  local packed = redis.call('HGET', members, member)
  if not packed then return nil end
  local s, n, w, lease, alive, delay, f = string.match(packed, '^(%a):(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)$')
  if not s then error('CORRUPT member ' .. member .. ': ' .. packed) end
  return { s = s, n = tonumber(n), w = tonumber(w), lease = tonumber(lease), alive = tonumber(alive),
           delay = tonumber(delay), fence = tonumber(f) }
end

local function write(member, one)
  redis.call('HSET', members, member, one.s .. ':' .. text(one.n) .. ':' .. text(one.w) .. ':' .. text(one.lease) .. ':'
    .. text(one.alive) .. ':' .. text(one.delay) .. ':' .. text(one.fence))
end

local function leave(member, one, s)
  if one.s == 'h' then
    redis.call('ZREM', held, member)
    used = used - one.w
  elseif one.s == 'q' then
    redis.call('ZREM', line, member)
  end
  one.s = s
  write(member, one)
  redis.call('ZADD', gone, text(now + MEMORY), member)
end

local function grant(member, one, ends)
  fence = math.max(fence + 1, us)
  used, one.s, one.fence = used + one.w, 'h', fence
  write(member, one)
  redis.call('ZADD', held, text(ends), member)
end

local function lapse()
  local late = redis.call('ZRANGEBYSCORE', held, '-inf', text(now), 'WITHSCORES')
  for index = 1, #late, 2 do
    local one = read(late[index])
    notbefore = math.max(notbefore, tonumber(late[index + 1]) + one.delay)
    leave(late[index], one, 'e')
    expired = expired + 1
  end
end

-- In a cluster the channels are sharded; elsewhere, and in a server that knows no such channels, nobody hears that.
local function tell(member)
  local channel = channels .. string.match(member, '^[^/]*')
  local heard = redis.pcall('SPUBLISH', channel, member)
  if heard ~= 1 then redis.call('PUBLISH', channel, member) end
end

local function promote()
  while true do
    local member = redis.call('ZRANGE', line, 0, 0)[1]
    if not member then return end
    local one = read(member)
    if one.alive <= now then
      leave(member, one, 'e')
    elseif used + one.w <= kept and now >= notbefore then
      redis.call('ZREM', line, member)
      grant(member, one, now + math.min(one.lease, CLAIM))
      if member ~= me then tell(member) end
    else
      return
    end
  end
end

local function lower(member, n, weight)
  local one = read(member)
  if one and one.n > n then return 0 end
  if not one or one.n < n then -- it never came here: should it still come, it is too late
    one = one or { s = 'x', lease = 0, alive = 0, delay = 0, fence = 0, w = 0 }
    one.n = n
    leave(member, one, 'x')
    return 0
  end
  if one.s == 'd' then return 1 end
  if one.s == 'q' then
    leave(member, one, 'x')
    return 2
  end
  if one.s ~= 'h' then
    leave(member, one, 'x')
    return 0
  end
  if weight == 0 then
    leave(member, one, 'd')
  elseif weight < one.w then
    used, one.w = used - one.w + weight, weight
    write(member, one)
  end
  return 1
end

local function save()
  redis.call('HSET', state, 'v', FORMAT, 'cap', text(kept), 'used', text(used), 'fence', text(fence), 'seq', text(seq),
    'notbefore', text(notbefore), 'expired', text(expired))
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', gone, '-inf', text(now), 'LIMIT', 0, 20)) do
    redis.call('ZREM', gone, member)
    redis.call('HDEL', members, member)
  end
  for index = 1, 5 do redis.call('PEXPIRE', KEYS[index], TTL) end
end

local function wait_in_line(one)
  if not redis.call('ZSCORE', line, me) then
    seq = seq + 1
    redis.call('ZADD', line, text(ARGV[own + 6] == '1' and seq or seq + LAST), me)
  end
  one.s = 'q'
  write(me, one)
  redis.call('ZREM', gone, me)
end

local function acquire(outcomes)
  local one = read(me)
  if one and one.n < my.n and (one.s == 'h' or one.s == 'q') then -- its end never came here
    leave(me, one, 'x')
  end
  promote()
  one = read(me)
  if one and (one.n > my.n or one.n == my.n and (one.s == 'd' or one.s == 'x')) then return { outcomes, -1 } end
  if one and one.n == my.n and one.s == 'h' then
    redis.call('ZADD', held, text(now + one.lease), me)
    return { outcomes, 1, text(one.fence) }
  end
  my.s, my.alive, my.fence = 'x', now + tonumber(ARGV[own + 4]), 0
  if used + my.w <= kept and now >= notbefore and redis.call('ZCARD', line) == 0 then
    grant(me, my, now + my.lease)
    redis.call('ZREM', gone, me)
    return { outcomes, 1, text(my.fence) }
  end
  if ARGV[own + 7] == '1' then wait_in_line(my) end
  local first = redis.call('ZRANGE', held, 0, 0, 'WITHSCORES')
  local wait = math.max(first[2] and tonumber(first[2]) - now or 0, notbefore - now)
  return { outcomes, 0, '', wait, redis.call('ZRANK', line, me) or -1, first[1] or '' }
end

local function renew(outcomes)
  local renewed = {}
  for index = own + 1, own + 3 * tonumber(ARGV[own]), 3 do
    local one = read(ARGV[index])
    local holds = one and one.s == 'h' and one.n == tonumber(ARGV[index + 1])
    if holds then redis.call('ZADD', held, text(now + tonumber(ARGV[index + 2])), ARGV[index]) end
    renewed[#renewed + 1] = holds and 1 or 0
  end
  promote()
  return { outcomes, renewed }
end

local function look(outcomes)
  promote()
  local holders, waiters = {}, {}
  local all = redis.call('ZRANGE', held, 0, -1, 'WITHSCORES')
  for index = 1, #all, 2 do
    local one = read(all[index])
    holders[#holders + 1] = { all[index], one.w, tonumber(all[index + 1]) - now, text(one.fence) }
  end
  for _, member in ipairs(redis.call('ZRANGE', line, 0, -1)) do
    waiters[#waiters + 1] = { member, read(member).w }
  end
  return { outcomes, kept, used, expired, text(fence), text(now), holders, waiters }
end

-- Whoever asks for another capacity gets it once nobody depends on the old one.
local function refit()
  for _, member in ipairs(redis.call('ZRANGE', line, 0, -1)) do
    local one = read(member)
    if one.alive <= now then leave(member, one, 'e') end
  end
  if used == 0 and redis.call('ZCARD', line) == 0 then kept = cap end
end

lapse()
local outcomes = {}
for index = 5, own - 1, 3 do
  outcomes[#outcomes + 1] = lower(ARGV[index], tonumber(ARGV[index + 1]), tonumber(ARGV[index + 2]))
end
if kept ~= cap and op == 'acquire' then refit() end
local answer
if kept ~= cap and op == 'acquire' then
  promote()
  answer = { outcomes, -2, text(kept) }
elseif op == 'acquire' then
  answer = acquire(outcomes)
elseif op == 'renew' then
  answer = renew(outcomes)
elseif op == 'look' then
  answer = look(outcomes)
else
  promote()
  answer = { outcomes }
end
save()
return answer
