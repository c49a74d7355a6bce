-- at_once: the fast path for a request that the limits admit at once. It runs before the script defines the functions
-- of the general form, which takes longer than admitting the request. It applies if no request waits, no permits are
-- counted, there is no pause, and the limits are those of the caller. Everything else, damaged data too, is left to
-- the general form that follows, with nothing written.
--
-- It writes and answers the same as the general form; a test runs both and compares. `charge` is defined in the file
-- before this one: see `bucket_at_once.lua` and `counter_at_once.lua`.

local function admit_at_once()
  local HUGE = 2 ^ 60
  local raw = redis.call('GET', KEYS[1])
  if not raw then
    return
  end
  local config, op = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
  local state = cmsgpack.unpack(raw)
  -- The sum detects a value that is not a finite number, as in `state.lua`.
  local sum = state.at + state.pause + state.turn + state.version
  if state.format ~= 1 or state.of ~= config[1] or state.waiting ~= 0 or state.entries ~= 0 or state.own or config[3] ~= 0
    or op.at_most or op.version ~= state.version or not (sum > -HUGE and sum < HUGE) then
    return
  end
  local now = op.now
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  local max, elapsed = math.max, math.max(0, now - state.at)
  state.at, state.pause = now, max(-2 ^ 52, state.pause - elapsed)
  if state.pause > 0 then
    return
  end
  local rows, limits, costs, tickets, left, unused = config[2], state.limits, op.costs, {}, {}, 0
  for i = 1, #rows do
    local ticket, rest, lasts = charge(rows[i], limits[i], costs[i], now, elapsed)
    if not ticket then
      return
    end
    tickets[i], left[i], unused = ticket, rest, max(unused, lasts)
  end
  local answer = cmsgpack.pack({granted = true, tickets = tickets, costs = costs, fresh = false, left = left, unused = unused,
    version = state.version})
  return answer, cmsgpack.pack(state), string.format('%.0f', math.ceil(unused / 1000) + 90000), op
end

-- Data that cannot be decoded raises an error.
local good, answer, state, keep, op = pcall(admit_at_once)
if good and answer then
  if op.got and #op.got > 0 then
    redis.call('HDEL', KEYS[4], unpack(op.got))
  end
  if redis.call('HSETNX', KEYS[4], op.id, answer) == 0 then
    return redis.call('HGET', KEYS[4], op.id)
  end
  if op.keep then
    redis.call('PEXPIRE', KEYS[4], 90000)
  end
  redis.call('SET', KEYS[1], state, 'PX', keep)
  return answer
end
