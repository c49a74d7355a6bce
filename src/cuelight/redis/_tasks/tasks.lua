-- What moves a task. The rules are those of `tasks/_engine.py` and `tasks/_transitions.py`.

local KINDS = 7 -- states, in the number that says how an attempt was settled
local NAMES = {
  [0] = 'done', 'error', 'timeout', 'crash', 'rate_limited', 'released', 'rejected', 'cancelled', 'unknown',
}
local IS_DONE, IS_CRASH, IS_RATE_LIMITED, IS_REJECTED, IS_CANCELLED, IS_UNKNOWN = 0, 3, 4, 6, 7, 8
local holder_of, hold, shift, apply, expire, tell, fate_of, crash, insert, answered, remember

do
  local COUNTED = {[1] = 1, [2] = 2, [3] = 3, [4] = 4, [5] = 5} -- kind -> which count of a story
  local SPENT = {[1] = {RETRIES, 'errors'}, [2] = {TIMEOUTS, 'timeouts'}, [3] = {CRASHES, 'quarantined'}}
  local HISTORY = 20

  -- Unique keys: {id, until}

  function holder_of(key)
    local raw = read(SIDE, 'u' .. key)
    local readable, holder = pcall(unpacked, raw or '')
    return raw and readable and type(holder) == 'table' and holder or nil
  end

  function hold(key, id, ends)
    keep_until('u' .. key, pack({id, ends}), ends)
  end

  local function let_go(row)
    local holder = holder_of(row[UNIQUE])
    if holder and holder[1] == row[ID] and holder[2] == INF then
      put(SIDE, 'u' .. row[UNIQUE], false)
    end
  end

  -- Bring a task into another state, with all that follows for its limits.
  function shift(row, state, ends)
    local old, lane_left, lane = row[STATE], row[LANE], nil
    leave(row)
    row[STATE], row[DUE], row[LANE] = state, ends or 0, 0
    if row[LIMITS] and state == PENDING then
      lane = lane_of(row)
      row[LANE] = lane[NUMBER]
    end
    enter(row)
    if old < IN_FLIGHT and state >= IN_FLIGHT then
      wait_no_more(row)
    elseif old >= IN_FLIGHT and state < IN_FLIGHT then
      wait(row)
    end
    save(row)
    if lane then
      entered(lane, row)
    end
    if lane_left > 0 and old == PENDING then
      left(lane_left, row[SEQ])
    end
    if row[LIMITS] and old == IN_FLIGHT then
      ended(row)
    end
  end

  -- Let a task have its fate.
  function apply(row, state, ends, reason)
    if state <= IN_FLIGHT then
      shift(row, state, ends)
      return
    end
    row[ENDED], row[REASON], row[CANCELLING] = now, reason or '', 0
    if row[UNIQUE] and row[UNIQUE_FOR] < 0 then
      let_go(row)
    end
    shift(row, state, state ~= DEAD_LETTER and now + row[TTL] or 0)
  end

  function expire(row)
    apply(row, DEAD_LETTER, 0, 'expired')
  end

  -- One more attempt that did not succeed.
  function tell(row, kind, attempt)
    if not attempt and not COUNTED[kind] then
      return
    end
    local story = story_of(row)
    if COUNTED[kind] then
      story[COUNTED[kind]] = story[COUNTED[kind]] + 1
    end
    if attempt then
      local history = story[6]
      history[#history + 1] = attempt
      while #history > HISTORY do
        table.remove(history, 1)
      end
    end
    keep_blob(row, 's', STORY, pack(story))
    return story
  end

  -- What becomes of a task whose attempt ended so: state, end of its delay, reason.
  function fate_of(row, kind, delay, story)
    if kind == IS_DONE then
      return COMPLETED, 0
    elseif row[CANCELLING] == 1 or kind == IS_CANCELLED then
      return CANCELLED, 0
    elseif kind == IS_REJECTED then
      return DEAD_LETTER, 0, 'rejected'
    elseif kind == IS_UNKNOWN then
      return PARKED, 0
    end
    local spent = SPENT[kind]
    if spent and story[kind] >= math.max(1, row[spent[1]]) then
      return DEAD_LETTER, 0, spent[2]
    elseif kind == IS_CRASH or delay == 0 then
      return PENDING, 0
    end
    return SCHEDULED, now + delay
  end

  function crash(row)
    local attempt = {kind = 'crash', worker = row[WORKER], at = now, elapsed = 0, error = 'the lease ran out'}
    apply(row, fate_of(row, IS_CRASH, 0, tell(row, IS_CRASH, attempt)))
  end

  function insert(row, blob)
    row[SEQ] = next_sequence()
    row[TURN] = turn_of_new(row)
    row[STATE] = row[DUE] > now and SCHEDULED or PENDING
    row[DUE] = row[STATE] == SCHEDULED and row[DUE] or 0
    if row[UNIQUE] then
      hold(row[UNIQUE], row[ID], row[UNIQUE_FOR] < 0 and INF or now + row[UNIQUE_FOR])
    end
    local lane
    if row[LIMITS] and row[STATE] == PENDING then
      lane = lane_of(row)
      row[LANE] = lane[NUMBER]
    end
    cache[row[ID]] = row
    enter(row)
    wait(row)
    zput(SEQUENCES, row[ID], row[SEQ])
    put(BLOBS, 'b' .. row[ID], blob)
    save(row)
    if lane then
      entered(lane, row)
    end
  end

  function remove(row)
    zdrop(HOME[row[STATE]], row[ID])
    forget_task(row[ID])
  end

  -- A task whose row cannot be read is a dead letter from now on, by its name and with what is left of it: its record,
  -- and its limits, of which it may have held a place. Its epoch is above all that were given before.
  condemn = function(id, why)
    local blob = read(BLOBS, 'b' .. id)
    local readable, record = pcall(function()
      return unpacked(string.sub(blob, 5, 4 + struct.unpack('>I4', blob)))
    end)
    record = readable and type(record) == 'table' and record or {}
    local held = redis.call('ZSCORE', LEASES, id)
    for _, key in ipairs({DELAYED, LEASES, PARKS, DEAD, DONE, CANCELS, DEADLINES}) do
      zdrop(key, id)
    end
    local row = {
      id, tonumber(redis.call('ZSCORE', SEQUENCES, id) or next_sequence()), DEAD_LETTER, math.floor(now), 0, '', 0, 0, now,
      'rejected', 0, 0, 0, record.type or '', '', 2, INF, 3, 3, 3, false, -1, 3600, false, now,
    }
    cache[id] = row
    zput(SEQUENCES, id, row[SEQ])
    enter(row)
    keep_blob(row, 's', STORY, pack({0, 0, 0, 0, 0, {{kind = 'rejected', at = now, error = why}}}))
    save(row)
    if held then
      local limits = {}
      for index, limit in ipairs(type(record.limits) == 'table' and record.limits or {}) do
        limits[index] = {limit.key}
      end
      ended({[LIMITS] = limits})
    end
  end

  -- A member of a zset whose task is not where the member says. Drops it; what has lost only its row is condemned.
  function stray(key, member, id)
    zdrop(key, member)
    if not cache[id] and read(BLOBS, 'b' .. id) then
      condemn(id, 'its row in the store is gone')
    end
  end

  -- Steps whose answers would be others if they were made again remember what they have answered.

  function answered(nonce)
    local raw = read(SIDE, 'n' .. nonce)
    if raw then
      return unpacked(raw)
    end
  end

  function remember(nonce, answer)
    keep_until('n' .. nonce, pack({answer}), now + 60)
  end
end
