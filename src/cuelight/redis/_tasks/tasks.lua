-- The transitions of tasks, by the rules of `tasks/_stores/_engine.py`.

local KINDS = 7 -- number of states, for the number that encodes how an attempt was finished
local NAMES = {
  [0] = 'done', 'error', 'timeout', 'crash', 'rate_limited', 'released', 'rejected', 'cancelled', 'unknown', 'undecodable',
}
local IS_DONE, IS_CRASH, IS_RATE_LIMITED, IS_RELEASED, IS_REJECTED, IS_CANCELLED = 0, 3, 4, 5, 6, 7
local IS_UNKNOWN, IS_UNDECODABLE = 8, 9
local readable_name, unique_holder, unique_owner, hold_unique, change_state, apply, expire, record_attempt,
  outcome_of, dead_letter_row, crash, insert, answered, remember

do
  local COUNTED = {[1] = 1, [2] = 2, [3] = 3, [4] = 4, [5] = 5} -- kind -> index of its count
  local SPENT = {[1] = {RETRIES, 'errors'}, [2] = {TIMEOUTS, 'timeouts'}, [3] = {CRASHES, 'quarantined'}}
  local HISTORY = 20

  -- Return a name that the client can decode: names that are not valid UTF-8 are replaced.
  function readable_name(name)
    if not string.find(name, '[\128-\255]') then
      return name
    end
    local rest_of_name = name
    for _, sequence in ipairs({
      '[\240][\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]',
      '[\244][\128-\143][\128-\191][\128-\191]', '[\224][\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
      '[\237][\128-\159][\128-\191]', '[\194-\223][\128-\191]',
    }) do
      rest_of_name = string.gsub(rest_of_name, sequence, 'x')
    end
    if not string.find(rest_of_name, '[\128-\255]') then
      return name
    end
    return 'undecodable-' .. string.gsub(name, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
  end

  -- Unique keys: {id, until}

  function unique_holder(key)
    local raw = read(SIDE, 'u' .. key)
    if raw then
      local readable, holder = pcall(function()
        local holder = unpacked(raw)
        return '' <= holder[1] and (holder[2] < LATEST or holder[2] == INF) and holder
      end)
      return readable and holder or nil
    end
  end

  -- Return the task that holds a unique key now: until it is finished, or for a time.
  function unique_owner(key)
    local holder = unique_holder(key)
    if holder and holder[2] == INF then
      local row = row_of(holder[1])
      return row and row[STATE] <= IN_FLIGHT and row[UNIQUE] == key and holder[1] or nil
    end
    return holder and holder[2] > now and readable_name(holder[1]) or nil
  end

  function hold_unique(key, id, ends)
    keep_until('u' .. key, pack({id, ends}), ends)
  end

  local function release_unique(row)
    local holder = unique_holder(row[UNIQUE])
    if holder and holder[1] == row[ID] and holder[2] == INF then
      put(SIDE, 'u' .. row[UNIQUE], false)
    end
  end

  -- Move a task to another state, and update its limits.
  function change_state(row, state, ends)
    local old, lane_left, limit_queue = row[STATE], row[LANE], nil
    remove_from_state(row)
    row[STATE], row[DUE], row[LANE] = state, ends or 0, 0
    if old == IN_FLIGHT then
      row[HAS] = bit.band(row[HAS], HANDED - 1)
    end
    if row[LIMITS] and state == PENDING then
      limit_queue = limit_queue_of(row)
      row[LANE] = limit_queue[NUMBER]
    end
    add_to_state(row)
    if old < IN_FLIGHT and state >= IN_FLIGHT then
      remove_waiting(row)
    elseif old >= IN_FLIGHT and state < IN_FLIGHT then
      add_waiting(row)
    end
    save(row)
    if limit_queue then
      entered_limit_queue(limit_queue, row)
    end
    if lane_left > 0 and old == PENDING then
      left_limit_queue(lane_left, row[SEQ])
    end
    if row[LIMITS] and old == IN_FLIGHT then
      end_limits(row)
    end
  end

  -- Apply the outcome of an attempt, or another final state, to a task.
  function apply(row, state, ends, reason)
    if state <= IN_FLIGHT then
      change_state(row, state, ends)
      return
    end
    row[ENDED], row[REASON], row[CANCELLING] = now, reason or '', 0
    if row[UNIQUE] and row[UNIQUE_FOR] < 0 then
      release_unique(row)
    end
    change_state(row, state, state ~= DEAD_LETTER and now + row[TTL] or 0)
  end

  function expire(row)
    apply(row, DEAD_LETTER, 0, 'expired')
  end

  -- Record one more failed attempt. Returns false if the earlier attempts cannot be read.
  function record_attempt(row, kind, attempt)
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

  -- Return the state of a task after an attempt, the end of its delay, and the reason.
  function outcome_of(row, kind, delay, story)
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

  -- Make a task with an unreadable part, `raw`, a dead letter. If its attempts are unknown, it may have failed any number
  -- of times.
  function dead_letter_row(row, why, raw)
    local attempt = {kind = 'undecodable', worker = row[WORKER], at = now, error = why or 'its attempts cannot be read'}
    keep_blob(row, 'r', RESULT, raw or (not why and read(BLOBS, 's' .. row[ID])) or nil)
    keep_blob(row, 's', STORY, pack({0, 0, 0, 0, 0, {attempt}}))
    apply(row, DEAD_LETTER, 0, 'undecodable')
  end

  -- Handle the end of a lease.
  function crash(row)
    if bit.band(row[HAS], HANDED) > 0 then
      apply(row, outcome_of(row, IS_RELEASED, 0)) -- its worker was not notified
      return
    end
    local attempt = {kind = 'crash', worker = row[WORKER], at = now, elapsed = 0, error = 'the lease ran out'}
    local story = record_attempt(row, IS_CRASH, attempt)
    if story then
      apply(row, outcome_of(row, IS_CRASH, 0, story))
    else
      dead_letter_row(row)
    end
  end

  function insert(row, blob)
    row[SEQ] = next_sequence()
    row[TURN] = start_of_new(row)
    row[STATE] = row[DUE] > now and SCHEDULED or PENDING
    row[DUE] = row[STATE] == SCHEDULED and row[DUE] or 0
    if row[UNIQUE] then
      hold_unique(row[UNIQUE], row[ID], row[UNIQUE_FOR] < 0 and INF or now + row[UNIQUE_FOR])
    end
    local limit_queue
    if row[LIMITS] and row[STATE] == PENDING then
      limit_queue = limit_queue_of(row)
      row[LANE] = limit_queue[NUMBER]
    end
    cache[row[ID]] = row
    add_to_state(row)
    add_waiting(row)
    zput(SEQUENCES, row[ID], row[SEQ])
    put(BLOBS, 'b' .. row[ID], blob)
    save(row)
    if limit_queue then
      entered_limit_queue(limit_queue, row)
    end
  end

  function remove(row)
    zdrop(HOME[row[STATE]], row[ID])
    forget_task(row[ID])
  end

  -- Steps that would answer differently when they are sent again remember their answers.

  function answered(nonce)
    local raw = read(SIDE, 'n' .. nonce)
    local readable, stored = pcall(unpacked, raw or '')
    return raw and readable and type(stored) == 'table' and stored or nil
  end

  function remember(nonce, answer)
    keep_until('n' .. nonce, pack({answer}), now + 60)
  end
end

-- The answer of the script, see `commit.lua`.

local answer, shown, kinds, rest, wanting, tidy = nil, {}, {}, {}, nil, nil
local checks, run_again = false, nil -- whether to look for damage; called when damage was found and repaired
