-- What moves a task. The rules are those of `tasks/_stores/_engine.py` and `tasks/_stores/_engine.py`.

local KINDS = 7 -- states, in the number that says how an attempt was settled
local NAMES = {
  [0] = 'done', 'error', 'timeout', 'crash', 'rate_limited', 'released', 'rejected', 'cancelled', 'unknown', 'undecodable',
}
local IS_DONE, IS_CRASH, IS_RATE_LIMITED, IS_RELEASED, IS_REJECTED, IS_CANCELLED = 0, 3, 4, 5, 6, 7
local IS_UNKNOWN, IS_UNDECODABLE = 8, 9
local readable_name, holder_of, held_by, hold, shift, apply, expire, tell, fate_of, give_up, crash, insert, answered, remember

do
  local COUNTED = {[1] = 1, [2] = 2, [3] = 3, [4] = 4, [5] = 5} -- kind -> which count of a story
  local SPENT = {[1] = {RETRIES, 'errors'}, [2] = {TIMEOUTS, 'timeouts'}, [3] = {CRASHES, 'quarantined'}}
  local HISTORY = 20

  -- A name for what has one that is no valid UTF-8, which the client cannot read.
  function readable_name(name)
    if not string.find(name, '[\128-\255]') then
      return name
    end
    local left = name
    for _, sequence in ipairs({
      '[\240][\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]',
      '[\244][\128-\143][\128-\191][\128-\191]', '[\224][\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
      '[\237][\128-\159][\128-\191]', '[\194-\223][\128-\191]',
    }) do
      left = string.gsub(left, sequence, 'x')
    end
    if not string.find(left, '[\128-\255]') then
      return name
    end
    return 'undecodable-' .. string.gsub(name, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
  end

  -- Unique keys: {id, until}

  function holder_of(key)
    local raw = read(SIDE, 'u' .. key)
    if raw then
      local readable, holder = pcall(function()
        local holder = unpacked(raw)
        return '' <= holder[1] and (holder[2] < LATEST or holder[2] == INF) and holder
      end)
      return readable and holder or nil
    end
  end

  -- The task that holds a key now: until it is over, or for a time.
  function held_by(key)
    local holder = holder_of(key)
    if holder and holder[2] == INF then
      local row = row_of(holder[1])
      return row and row[STATE] <= IN_FLIGHT and row[UNIQUE] == key and holder[1] or nil
    end
    return holder and holder[2] > now and readable_name(holder[1]) or nil
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
    if old == IN_FLIGHT then
      row[HAS] = bit.band(row[HAS], HANDED - 1)
    end
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

  -- One more attempt that did not succeed. False if those before cannot be read.
  function tell(row, kind, attempt)
    if not attempt and not COUNTED[kind] then
      return
    end
    local story = story_of(row)
    if not story then
      return false
    end
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
    elseif kind == IS_UNDECODABLE then
      return DEAD_LETTER, 0, 'undecodable'
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

  -- A task of which a part cannot be read, `raw`, is a dead letter. Of whose attempts nothing is known may have failed any
  -- number of times.
  function give_up(row, why, raw)
    local attempt = {kind = 'undecodable', worker = row[WORKER], at = now, error = why or 'its attempts cannot be read'}
    keep_blob(row, 'r', RESULT, raw or (not why and read(BLOBS, 's' .. row[ID])) or nil)
    keep_blob(row, 's', STORY, pack({0, 0, 0, 0, 0, {attempt}}))
    apply(row, DEAD_LETTER, 0, 'undecodable')
  end

  -- The lease of a task is over.
  function crash(row)
    if bit.band(row[HAS], HANDED) > 0 then
      apply(row, fate_of(row, IS_RELEASED, 0)) -- its worker has not heard of it
      return
    end
    local attempt = {kind = 'crash', worker = row[WORKER], at = now, elapsed = 0, error = 'the lease ran out'}
    local story = tell(row, IS_CRASH, attempt)
    if story then
      apply(row, fate_of(row, IS_CRASH, 0, story))
    else
      give_up(row)
    end
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

  -- Steps whose answers would be others if they were made again remember what they have answered.

  function answered(nonce)
    local raw = read(SIDE, 'n' .. nonce)
    local readable, there = pcall(unpacked, raw or '')
    return raw and readable and type(there) == 'table' and there or nil
  end

  function remember(nonce, answer)
    keep_until('n' .. nonce, pack({answer}), now + 60)
  end
end

-- What the script will answer, see `reply.lua`.

local answer, shown, kinds, rest, wanting, tidy = nil, {}, {}, {}, nil, nil
local checks, again = false, nil -- whether to look for damage; what to do when some was found and seen to
