-- What every script of a limiter begins with: its arguments, the time, and what the server remembers of it.
--
-- KEYS of every script, all in one slot:
--   1  string  the state: what is owed, the pause, an override; packed by cmsgpack. Lives for as long as it says
--              something that a new one would not, and 90 s.
--   2  zset    those that wait, scored by their turn
--   3  hash    what those that wait ask for, packed
--   4  hash    what the caller's party was answered lately, by request, in case that the answer got lost
--   5  zset    who holds a permit, scored by when it was given
--   6  zset    parties, scored by when their leases end. A party is one limiter object in one event loop of one
--              process; the name of a request begins with the name of its party and a colon.
--   7  zset    the log of the first limit, and so on; only where the algorithm keeps logs
-- ARGV: 1 the plan, 2 what is asked; both packed by msgpack.
--
-- A plan is {what it limits, rows, permits (0: any number), lease in milliseconds, the first part of the channel of a party}.
-- A row is one limit.
-- An answer is packed too, a map. With `error` in it, nothing was done.
--
-- Times are whole microseconds of this server. Where it matters (what is owed, pauses) they are counted from the last
-- step, so that a clock that was set back makes nothing wait for it. All numbers are whole and below 2^53.

local FORMAT, EVER, LATE, RECENT, OVERRIDE, HUGE = 1, 2 ^ 52, 10000, 90000, 30 * 86400000, 2 ^ 60
local pack, read = cmsgpack.pack, cmsgpack.unpack
local call, max, min, ceil, floor = redis.call, math.max, math.min, math.ceil, math.floor
local plan, op = read(ARGV[1]), read(ARGV[2])

local function whole(number)
  return string.format('%.0f', number)
end

local now = op.now
if not now then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

local raw, state = call('GET', KEYS[1]), nil
if raw then
  local good, value = pcall(read, raw)
  if not good or type(value) ~= 'table' or type(value.format) ~= 'number' then
    return pack({error = 'corrupt'})
  end
  if value.format > FORMAT then
    return pack({error = 'future', format = value.format})
  end
  if value.of ~= plan[1] then
    return pack({error = 'other', of = value.of})
  end
  -- A sum tells of any that is no number, not finite, or absurd: one that is nan would let everything through.
  local good, sum = pcall(function()
    return value.at + value.pause + value.waiting + value.entries + value.turn + value.version + #value.limits
  end)
  if not good or not (sum > -HUGE and sum < HUGE) or value.waiting < 0 or value.entries < 0 then
    return pack({error = 'corrupt'})
  end
  state = value
else
  -- pause: how long it lasts, less than 0 when it is over; waiting: how many; entries: how many
  -- are in hash 3, with those that were let through and do not know it; turn: the last one's; asked: what all
  -- that ever waited asked for, by limit, since somebody waits; own: limits that were
  -- set for all {rows, permits, numbers}, and version: how many times.
  state = {format = FORMAT, of = plan[1], at = now, pause = -EVER, waiting = 0, entries = 0, turn = 0, version = 0,
    limits = {}}
  call('DEL', KEYS[2], KEYS[3]) -- who waits asks again
end

local rows, permits, lease = plan[2], plan[3], plan[4]
if state.own then
  rows, permits = state.own[1], state.own[2]
end
local limits = state.limits

-- Refuse numbers that are none, by their sum, and one that must be 1 or more.
local function check(sum, least)
  if not (sum > -HUGE and sum < HUGE and least >= 1) then
    error('CORRUPT limit')
  end
end

if state.own then
  check(permits, permits + 1)
  for i = 1, #plan[2] do
    check(rows[i][1] + rows[i][2] + (rows[i][3] or 1), min(rows[i][1], rows[i][2], rows[i][3] or 1))
  end
end
local elapsed = now - state.at
local went_back = elapsed < 0
elapsed = max(0, elapsed)
state.at = now
state.pause = max(-EVER, state.pause - elapsed)

-- The meters of the algorithm. Each function takes the number of the limit first; due is from now on.
local meter = {}
