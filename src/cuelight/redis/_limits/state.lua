-- The beginning of every limiter script: its arguments, the time, and the state on the server.
--
-- KEYS of every script, all in one slot:
--   1  string  the state: debts, the pause, limits set for all; packed by cmsgpack. Expires 90 s after it has become
--              equal to a new state.
--   2  zset    the waiting requests, scored by their turn
--   3  hash    the arguments of the waiting requests, packed
--   4  hash    recent answers to the caller's party, by request, in case an answer got lost
--   5  zset    the requests that hold a permit, scored by the time of the grant
--   6  zset    the parties, scored by the end of their leases. A party is one limiter object in one event loop of one
--              process; the name of a request begins with the name of its party and a colon.
--   7  zset    the log of the first limit, and so on; only if the algorithm keeps logs
-- ARGV: 1 the configuration, 2 the arguments of the script; both packed by msgpack.
--
-- A configuration is {kind: the algorithm and the names of the limits, rows, permits (0: any number), lease in milliseconds, the
-- first part of the channel of a party}. A row is one limit.
-- An answer is packed too, a map. If it contains `error`, nothing was done.
--
-- Times are whole microseconds of this server. Debts and pauses are counted from the last step, so that no request
-- waits for a clock that was set back. All numbers are whole and below 2^53.

local FORMAT, NEVER, LATE, RECENT, OVERRIDE, HUGE = 1, 2 ^ 52, 10000, 90000, 30 * 86400000, 2 ^ 60
local pack, read = cmsgpack.pack, cmsgpack.unpack
local call, max, min, ceil, floor = redis.call, math.max, math.min, math.ceil, math.floor
local config, op = read(ARGV[1]), read(ARGV[2])

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
  if value.of ~= config[1] then
    return pack({error = 'other', of = value.of})
  end
  -- The sum detects any value that is not a number, not finite, or absurdly large: a nan would admit every request.
  local good, sum = pcall(function()
    return value.at + value.pause + value.waiting + value.entries + value.turn + value.version + #value.limits
  end)
  if not good or not (sum > -HUGE and sum < HUGE) or value.waiting < 0 or value.entries < 0 then
    return pack({error = 'corrupt'})
  end
  state = value
else
  -- pause: microseconds that it still lasts, below 0 when it is over; waiting: the number of waiting requests;
  -- entries: the number of entries in hash 3, which include requests that were admitted and do not know it yet;
  -- turn: the turn of the last request; asked: by limit, the total costs of all requests that have waited since
  -- the queue was last empty; own: the limits that were set for all {rows, permits, numbers}, and version: how
  -- often they were set.
  state = {format = FORMAT, of = config[1], at = now, pause = -NEVER, waiting = 0, entries = 0, turn = 0, version = 0,
    limits = {}}
  call('DEL', KEYS[2], KEYS[3]) -- waiting requests ask again
end

local rows, permits, lease = config[2], config[3], config[4]
if state.own then
  rows, permits = state.own[1], state.own[2]
end
local limits = state.limits

-- Raise an error if the sum shows that a value is not a finite number, or if `least` is below 1.
local function check(sum, least)
  if not (sum > -HUGE and sum < HUGE and least >= 1) then
    error('CORRUPT limit')
  end
end

if state.own then
  check(permits, permits + 1)
  for i = 1, #config[2] do
    check(rows[i][1] + rows[i][2] + (rows[i][3] or 1), min(rows[i][1], rows[i][2], rows[i][3] or 1))
  end
end
local elapsed = now - state.at
local clock_went_back = elapsed < 0
elapsed = max(0, elapsed)
state.at = now
state.pause = max(-NEVER, state.pause - elapsed)

-- The meters of the algorithm. The first argument of each function is the number of the limit; `available_in` counts from now.
local meter = {}
