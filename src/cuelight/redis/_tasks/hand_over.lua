-- hand_over: lease a task to a waiting worker in the step that adds it.
--
-- Each claim that found no task has left a member in `idle`: {nonce, seconds, channel, worker}, with the time of the
-- claim as its score. The task is published in that channel as a lease of HAND_OVER seconds, and remembered as an answer to
-- that claim. The next claim of the worker confirms the lease, which then lasts as long as any other. If it does not, the
-- message was lost or the worker is stuck: when the lease is over, the task is pending again, and no crash is counted.
--
-- Only the only pending task is handed over, so the order of claims is kept.

local HAND_OVER = 1 -- seconds
local MOST_GONE = 100 -- claims of workers that have ended

-- Return the claim that gets the task, and change the row; or return nil. Both forms of the step call it, with `now`.
local function hand_over(row, blob, now)
  local until_now = string.format('%.17g', now)
  if redis.call('ZCOUNT', DELAYED, '-inf', until_now) + redis.call('ZCOUNT', LEASES, '-inf', until_now) > 0 then
    return nil -- these must be processed first
  end
  local state, due, epoch, has = row[STATE], row[DUE], row[EPOCH], row[HAS]
  for _ = 1, MOST_GONE do
    local first = redis.call('ZPOPMIN', IDLE)
    if not first[1] then
      break
    end
    local readable, claim = pcall(cmsgpack.unpack, first[1])
    local waits = tonumber(first[2])
    if readable and type(claim) == 'table' and #claim == 4 and waits <= now and now < waits + WAITS_FOR then
      row[STATE], row[DUE], row[EPOCH], row[WORKER], row[HAS] = IN_FLIGHT, now + HAND_OVER, epoch + 1, claim[4], has + HANDED
      local raw = cmsgpack.pack(row)
      if redis.call(ARGV[3], claim[3], string.format('%s %d ', claim[1], #raw) .. raw .. blob) > 0 then
        return claim
      end
    end
  end
  row[STATE], row[DUE], row[EPOCH], row[WORKER], row[HAS] = state, due, epoch, '', has
  return nil
end

