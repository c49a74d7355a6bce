-- A capacity that members hold in parts under leases, and a queue of waiting members: locks, semaphores and read-write
-- locks.
--
-- KEYS, all with one hash tag; each lives for at least TTL - FRESH after the last call, longer than any lease:
--   1 state    string: format:capacity:sequence:expired:notbefore:refresh:prune, all numbers; then
--              "|used:waiting:fence", or "|member|end of its lease|" and the entry in 4 of a member that is alone
--   2 held     zset: member -> end of its lease (ms)
--   3 line     zset, the queue: member -> its ticket; the lowest is next
--   4 members  hash: member -> "state:number:weight:lease:alive:delay:fence", see below
--   5 gone     zset: member that has left -> time to check whether its entry can be deleted (ms)
-- ARGV: 1 operation, 2 first part of the channels, 3 capacity,
--   4 number of releases, then for each: member, number, weight that it keeps (0 releases everything)
--   then for `acquire`: member, number, weight, lease, alive, delay, 1 to go before others, 1 to wait in the queue
--        for `renew`: count, then for each: member, number, lease
--        for `lower` and `look`: nothing
--   Times are ms. A member is "process/slot"; its channel is the first part and the process.
-- Answer: {outcomes of the releases, ...}: 1 it held, 0 it did not (or not any more), 2 it left the queue; then for
--   acquire: 1 granted | 0 not yet | -1 it was released already; fence, ms until the next request makes sense, place in
--   the queue or -1, a member that holds; for renew: a list of 1 or 0; for look: capacity, used, expired, fence, ms
--   since 1970, the holders {member, weight, ms left, fence}..., the queue {member, weight}...
--
-- A member is in one state: q waits in the queue; h holds; d released what it held; x left otherwise; e its time ran
-- out. Waiting members are in the queue, holders in `held`, all others in `gone`, which may also list some that came
-- back. The number grows with each acquisition of a member, so that late and repeated calls are told from new ones.
--
-- A member that holds, or has released, while no other member holds or waits is alone: its entry is in the state
-- itself, and its entries in 2 to 5 are outdated. So an uncontended lock takes two Redis calls. Any other operation
-- first moves the entry to those keys.
--
-- 1. `used` is the sum of the held weights, and no more than the capacity.
-- 2. A fence is granted once, and is greater than all before. This holds even if this state was lost, as long as the
--    server's clock is not behind the last grant: a fence is at least the time in microseconds.
-- 3. A request is granted if there is room and no queue, or joins the end of the queue. Between calls the head of the
--    queue does not fit.
-- 4. Any call may be repeated with the same arguments, and then answers the same.

local state, held, queue, members, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local FORMAT, CLAIM, MEMORY, TTL, FRESH, LAST, EXACT = 1, 1000, 60000, 7200000, 1800000, 1099511627776, 2 ^ 53
local call, format, match, sub, tonumber, max =
  redis.call, string.format, string.match, string.sub, tonumber, math.max

local op, channels, capacity, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)
local packed = call('GET', state)

-- The fast path: the usual operations of a member that is alone. Each step costs time here, so values that are not
-- needed stay text. Anything unexpected is left to the general form below.

local head, places, from, pruned, member, ends, at, s, n, last =
  match(packed or '', '^(1:(%d+):%d+:%d+:(%d+):%d+:(%d+))|([^|]*)|(%d+)|()([hd]):(%d+):%d+:%d+:%d+:%d+:(%d+)$')
if head and now < tonumber(pruned) and (s == 'd' or now < tonumber(ends)) and tonumber(last) < EXACT then
  local new, answer
  if op == 'lower' and ARGV[4] == '1' and ARGV[5] == member and ARGV[6] == n and ARGV[7] == '0' then
    new, answer = sub(packed, 1, at - 1) .. 'd' .. sub(packed, at + 1), { { 1 } }
  elseif op == 'acquire' and ARGV[4] == '0' and ARGV[5] == member and ARGV[3] == places and now >= tonumber(from) then
    local number, weight, lease, alive, delay = match(table.concat(ARGV, ' ', 6, 10),
      '^([1-9]%d*) ([1-9]%d*) ([1-9]%d*) ([1-9]%d*) (%d+)$')
    if number and tonumber(number) > tonumber(n) and tonumber(weight) <= capacity then
      local fence = format('%.0f', max(last + 1, us))
      new = format('%s|%s|%.0f|h:%s:%s:%s:%.0f:%s:%s', head, member, now + lease, number, weight, lease, now + alive,
        delay, fence)
      answer = { {}, 1, fence }
    end
  elseif op == 'renew' and ARGV[4] == '0' and ARGV[5] == '1' and ARGV[6] == member and s == 'h' and ARGV[7] == n
    and match(ARGV[8], '^[1-9]%d*$') then
    new, answer = format('%s|%s|%.0f|%s', head, member, now + ARGV[8], sub(packed, at)), { {}, { 1 } }
  end
  if new then
    call('SET', state, new, 'PX', TTL)
    return answer
  end
end

-- The general form. It checks the arguments before it writes anything.

local own = 5 + 3 * count

local function number(index, least)
  local found = tonumber(ARGV[index])
  if not found or found < least or found % 1 ~= 0 then
    error('BADARG argument ' .. index .. ' is no whole number from ' .. least .. ': ' .. tostring(ARGV[index]))
  end
  return found
end

number(3, 1)
for index = 5, own - 1, 3 do number(index + 1, 1); number(index + 2, 0) end
local me, my = ARGV[own], nil
if op == 'acquire' then
  my = { s = 'x', n = number(own + 1, 1), w = number(own + 2, 1), lease = number(own + 3, 1),
         alive = number(own + 4, 1), delay = number(own + 5, 0), fence = 0 }
  if my.w > capacity then return redis.error_reply('BADARG weight ' .. my.w .. ' of ' .. capacity) end
elseif op == 'renew' then
  for index = own + 1, own + 3 * number(own, 0), 3 do number(index + 1, 1); number(index + 2, 1) end
elseif op ~= 'lower' and op ~= 'look' then
  return redis.error_reply('BADARG operation ' .. tostring(op))
end

-- State.

local kept, used, fence, seq, notbefore, expired, waiting, refresh, prune = capacity, 0, 0, 0, 0, 0, 0, 0, 0
local alone
if packed then
  local v, c, q, e, d, r, p, rest = match(packed, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)|(.*)$')
  local u, w, f = match(rest or '', '^(%d+):(%d+):(%d+)$')
  if v == '1' and not u then
    local member, ends, s, sn, sw, lease, alive, delay, sf =
      match(rest, '^([^|]*)|(%d+)|([hd]):(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)$')
    if s then
      alone = { member = member, ends = tonumber(ends), s = s, n = tonumber(sn), w = tonumber(sw),
                lease = tonumber(lease), alive = tonumber(alive), delay = tonumber(delay), fence = tonumber(sf) }
      u, w, f = s == 'h' and sw or 0, 0, sf
    end
  end
  if v ~= '1' or not u then
    v = tonumber(match(packed, '^(%d+):') or 0)
    if v > FORMAT then return redis.error_reply('FUTURE format ' .. v .. ', this script knows ' .. FORMAT) end
    return redis.error_reply('CORRUPT state: ' .. sub(packed, 1, 100))
  end
  kept, used, fence, seq, notbefore = tonumber(c), tonumber(u), tonumber(f), tonumber(q), tonumber(d)
  -- Above 2^53, adding 1 changes nothing: two grants would get one fence.
  if max(kept, used, fence, seq, notbefore, alone and max(alone.n, alone.w, alone.ends, alone.delay) or 0) >= EXACT then
    return redis.error_reply('CORRUPT state: ' .. sub(packed, 1, 100))
  end
  expired, waiting, refresh, prune = tonumber(e), tonumber(w), tonumber(r), tonumber(p)
end

local function save(answer)
  local packed = format('%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f|', FORMAT, kept, seq, expired, notbefore, refresh, prune)
  if alone then
    packed = packed .. format('%s|%.0f|%s:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f', alone.member, alone.ends, alone.s, alone.n,
      alone.w, alone.lease, alone.alive, alone.delay, alone.fence)
  else
    packed = packed .. format('%.0f:%.0f:%.0f', used, waiting, fence)
  end
  call('SET', state, packed, 'PX', TTL)
  return answer
end

-- Members.

local function read(member)
  local packed = call('HGET', members, member)
  if not packed then return nil end
  local s, n, w, lease, alive, delay, f = match(packed, '^(%a):(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)$')
  local one = s and { s = s, n = tonumber(n), w = tonumber(w), lease = tonumber(lease), alive = tonumber(alive),
                      delay = tonumber(delay), fence = tonumber(f) }
  if not one or max(one.n, one.w, one.lease, one.alive, one.delay, one.fence) >= EXACT then
    error('CORRUPT member ' .. member .. ': ' .. sub(packed, 1, 100))
  end
  return one
end

-- Return the entry of a member that holds or waits. It is missing only if keys were evicted or deleted; without this
-- check, a loop over such members would never end.
local function expect(member, s)
  local one = read(member)
  if one and one.s == s then return one end
  error('CORRUPT member ' .. member .. ': ' .. (one and one.s or 'none') .. ', not ' .. s)
end

local function write(member, one)
  local packed = format('%s:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f', one.s, one.n, one.w, one.lease, one.alive, one.delay,
    one.fence)
  if call('HSET', members, member, packed) == 1 then call('PEXPIRE', members, TTL) end
end

local function remove(member, one, s)
  if one.s == 'h' then
    call('ZREM', held, member)
    used = used - one.w
  elseif one.s == 'q' then
    call('ZREM', queue, member)
    waiting = waiting - 1
  end
  one.s = s
  write(member, one)
  if call('ZADD', gone, format('%.0f', now + MEMORY), member) == 1 then call('PEXPIRE', gone, TTL) end
end

local function grant(member, one, ends)
  local new = used == 0
  fence = max(fence + 1, us)
  used, one.s, one.fence = used + one.w, 'h', fence
  write(member, one)
  call('ZADD', held, format('%.0f', ends), member)
  if new then call('PEXPIRE', held, TTL) end
end

local function grant_waiters()
  while waiting > 0 do
    local member = call('ZRANGE', queue, 0, 0)[1]
    if not member then error('CORRUPT line: ' .. waiting .. ' wait in it, and it is empty') end
    local one = expect(member, 'q')
    if one.alive <= now then
      remove(member, one, 'e')
    elseif used + one.w <= kept and now >= notbefore then
      call('ZREM', queue, member)
      waiting = waiting - 1
      grant(member, one, now + math.min(one.lease, CLAIM))
      if member ~= me then
        -- In a cluster channels are sharded. Elsewhere SPUBLISH reaches nobody, or the server does not know it.
        local channel = channels .. match(member, '^[^/]*')
        if redis.pcall('SPUBLISH', channel, member) ~= 1 then call('PUBLISH', channel, member) end
      end
    else
      return
    end
  end
end

local function release(member, n, weight)
  local one = read(member)
  if one and one.n > n then return 0 end
  if not one or one.n < n then -- its request has not arrived; if it arrives later, it is refused
    one = one or { s = 'x', lease = 0, alive = 0, delay = 0, fence = 0, w = 0 }
    one.n = n
    remove(member, one, 'x')
    return 0
  end
  if one.s == 'd' then return 1 end
  if one.s ~= 'h' then
    local waited = one.s == 'q'
    remove(member, one, 'x')
    return waited and 2 or 0
  end
  if weight == 0 then
    remove(member, one, 'd')
  elseif weight < one.w then
    used, one.w = used - one.w + weight, weight
    write(member, one)
  end
  return 1
end

-- The state was lost, but not the other keys: their members ask again, or learn of the loss at their next renewal.
if not packed and call('EXISTS', held, queue, members, gone) > 0 then
  -- This fails for keys of another type.
  for _, key in ipairs({ held, queue, gone }) do call('ZREMRANGEBYRANK', key, 0, -1) end
  call('HLEN', members)
  call('DEL', members)
end

if alone then
  local one = alone
  alone = nil
  write(one.member, one)
  call('ZADD', one.s == 'h' and held or gone, format('%.0f', one.s == 'h' and one.ends or now + MEMORY), one.member)
  call('PEXPIRE', one.s == 'h' and held or gone, TTL)
end

-- Leases that have ended, and releases.

if used > 0 then
  local late = call('ZRANGEBYSCORE', held, '-inf', format('%.0f', now), 'WITHSCORES')
  for index = 1, #late, 2 do
    local one = expect(late[index], 'h')
    notbefore = max(notbefore, tonumber(late[index + 1]) + one.delay)
    remove(late[index], one, 'e')
    expired = expired + 1
  end
end
local outcomes = {}
for index = 5, own - 1, 3 do
  outcomes[#outcomes + 1] = release(ARGV[index], tonumber(ARGV[index + 1]), tonumber(ARGV[index + 2]))
end
if kept ~= capacity and op == 'acquire' then -- the capacity changes once no member depends on the old one
  for _, member in ipairs(call('ZRANGE', queue, 0, -1)) do
    local one = expect(member, 'q')
    if one.alive <= now then remove(member, one, 'e') end
  end
  if used == 0 and waiting == 0 then kept = capacity end
end

-- The operation itself.

local answer
if op == 'acquire' and kept == capacity then
  local one = read(me)
  -- Its release has not arrived.
  if one and one.n < my.n and (one.s == 'h' or one.s == 'q') then remove(me, one, 'x') end
  if waiting > 0 then
    grant_waiters()
    one = read(me)
  end
  local same = one and one.n == my.n
  if one and (one.n > my.n or same and (one.s == 'd' or one.s == 'x')) then
    answer = { outcomes, -1 }
  elseif same and one.s == 'h' then
    call('ZADD', held, format('%.0f', now + one.lease), me)
    answer = { outcomes, 1, format('%.0f', one.fence) }
  else
    my.alive = now + my.alive
    if used + my.w <= kept and now >= notbefore and waiting == 0 then
      if used == 0 then
        fence, used = max(fence + 1, us), my.w
        my.member, my.ends, my.s, my.fence = me, now + my.lease, 'h', fence
        alone = my
      else
        grant(me, my, now + my.lease)
      end
      answer = { outcomes, 1, format('%.0f', fence) }
    else
      local waits = same and one.s == 'q'
      if ARGV[own + 7] == '1' then
        if not waits then
          seq, waiting = seq + 1, waiting + 1
          call('ZADD', queue, format('%.0f', ARGV[own + 6] == '1' and seq or seq + LAST), me)
          if waiting == 1 then call('PEXPIRE', queue, TTL) end
        end
        waits, my.s = true, 'q'
        write(me, my)
      end
      local first = call('ZRANGE', held, 0, 0, 'WITHSCORES')
      local wait = max(first[2] and tonumber(first[2]) - now or 0, notbefore - now)
      answer = { outcomes, 0, '', wait, waits and call('ZRANK', queue, me) or -1, first[1] or '' }
    end
  end
elseif op == 'renew' then
  local renewed = {}
  for index = own + 1, own + 3 * tonumber(ARGV[own]), 3 do
    local one = read(ARGV[index])
    local holds = one and one.s == 'h' and one.n == tonumber(ARGV[index + 1])
    if holds then call('ZADD', held, format('%.0f', now + tonumber(ARGV[index + 2])), ARGV[index]) end
    renewed[#renewed + 1] = holds and 1 or 0
  end
  grant_waiters()
  answer = { outcomes, renewed }
else
  grant_waiters()
  answer = { outcomes }
  if op == 'acquire' then
    answer = { outcomes, -2, format('%.0f', kept) }
  elseif op == 'look' then
    local holders, waiters = {}, {}
    local all = call('ZRANGE', held, 0, -1, 'WITHSCORES')
    for index = 1, #all, 2 do
      local one = expect(all[index], 'h')
      holders[#holders + 1] = { all[index], one.w, tonumber(all[index + 1]) - now, format('%.0f', one.fence) }
    end
    for _, member in ipairs(call('ZRANGE', queue, 0, -1)) do
      waiters[#waiters + 1] = { member, expect(member, 'q').w }
    end
    answer = { outcomes, kept, used, expired, format('%.0f', fence), format('%.0f', now), holders, waiters }
  end
end

if now >= prune then -- delete the entries of members that left long ago and did not come back
  for _, member in ipairs(call('ZRANGEBYSCORE', gone, '-inf', format('%.0f', now), 'LIMIT', 0, 100)) do
    local one = read(member)
    if not one or one.s ~= 'q' and one.s ~= 'h' then call('HDEL', members, member) end
    call('ZREM', gone, member)
  end
  prune = now + MEMORY / 60
end
if now >= refresh then
  for index = 2, 5 do call('PEXPIRE', KEYS[index], TTL) end
  refresh = now + FRESH
end
return save(answer)
