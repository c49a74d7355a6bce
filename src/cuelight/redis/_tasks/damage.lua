-- Repairs damage: keys changed by hand, parts lost by the server, data of another program version. Damage to one task,
-- limit, unique key or schedule costs only that one. An unreadable task becomes a dead letter, "undecodable", with its
-- readable parts. Everything that can be rebuilt from the tasks is rebuilt: limits, limit queues, and the zsets of tasks.
-- The field "w" of `side` is the position of the search for limit queues that wait for nothing.
--
-- It runs last in each step and is not a function, because creating functions would cost time in steps without damage.
-- Before it runs, unreadable tasks are treated as missing.

if broken[1] or checks then
  local MANY, SOME = 2000, 100 -- tasks in flight, and limit queues, that one step reads
  local FEW, BUDGET = 20, 1000 -- members that one step reads if nothing seems wrong, and otherwise
  local PHASE = 4398046511104 -- more than any cursor of the server
  local repairs, held = {}, {}

  local function move_blobs(id, fresh)
    for _, kind in ipairs({'b', 's', 'c', 'p', 'r'}) do
      put(BLOBS, kind .. fresh, read(BLOBS, kind .. id))
      put(BLOBS, kind .. id, false)
    end
    zdrop(SEQUENCES, id)
    cache[id], dirty[id], forgotten[id] = false, nil, true
  end

  -- Build the row of a dead letter from the record of the task.
  local function rebuilt(id, sequence, record)
    local limits = {}
    for index, limit in ipairs(record.limits or {}) do
      limits[index] = {
        limit.key, limit.max_concurrent or false, limit.rate or false, limit.per, limit.burst or false, limit.cost,
      }
    end
    local row = {
      id, sequence, DEAD_LETTER, math.floor(now), 0, '', 0, 0, now, 'undecodable', 0, 0, 0, record.type, '',
      record.priority or 2, record.deadline or INF, record.max_retries or 3, record.max_timeouts or 3,
      record.max_crashes or 3, record.unique or false, record.unique_for or -1, record.result_ttl or 3600,
      0 < #limits and limits, now, 0, record.tenant or false, record.weight or 1,
    }
    return sound(row, id) and row
  end

  -- Make a task with an unreadable row a dead letter, with the values from its record. Its epoch is greater than all
  -- earlier ones. Its limits and its unique key are released. `raw`, its row, is kept as its result.
  local function dead_letter_corrupt(id, why, raw)
    local blob, was_held = read(BLOBS, 'b' .. id), held[id] or redis.call('ZSCORE', LEASES, id)
    local sequence = tonumber(redis.call('ZSCORE', SEQUENCES, id) or 0)
    if not (0 < sequence and sequence < EXACT and sequence % 1 == 0) then
      sequence = next_sequence()
    end
    for _, key in ipairs({DELAYED, LEASES, PARKS, DEAD, DONE, CANCELS, DEADLINES}) do
      zdrop(key, id)
    end
    local name = readable_name(id)
    local readable, row = pcall(function()
      return rebuilt(name, sequence, unpacked(string.sub(blob, 5, 4 + struct.unpack('>I4', blob))))
    end)
    row = readable and row or rebuilt(name, sequence, {type = ''})
    if name ~= id then
      move_blobs(id, name)
    end
    cache[name], places[name] = row, nil
    zput(SEQUENCES, name, sequence)
    add_to_state(row)
    for kind, flag in pairs({c = CHECKPOINT, p = PROGRESS}) do
      if read(BLOBS, kind .. name) then
        row[HAS] = row[HAS] + flag
      end
    end
    keep_blob(row, 's', STORY, pack({0, 0, 0, 0, 0, {{kind = 'undecodable', at = now, error = why}}}))
    keep_blob(row, 'r', RESULT, raw)
    save(row)
    if row[UNIQUE] then
      local holder = unique_holder(row[UNIQUE])
      if holder and holder[1] == id then
        put(SIDE, 'u' .. row[UNIQUE], false)
      end
    end
    if was_held and row[LIMITS] then
      end_limits(row)
    end
  end

  function repairs.row(id, raw, why)
    if not cache[id] then
      dead_letter_corrupt(id, why or 'its row in the store cannot be read', raw)
    end
  end

  -- The zset of a task

  local function is_in(key, member)
    local fresh = scores[key] and scores[key][member]
    if fresh ~= nil then
      return fresh and true
    end
    return redis.call('ZSCORE', key, member)
  end

  local function home_of(row, state)
    return HOME[state], state == PENDING and member_of(row) or row[ID]
  end

  -- Put a task into the zset of its state. If it is in the zset of another state, its row is wrong.
  local function restore_state_entry(row)
    if is_in(home_of(row, row[STATE])) then
      return
    end
    for state = PENDING, DEAD_LETTER do
      local key, member = home_of(row, state)
      if state ~= row[STATE] and is_in(key, member) then
        zdrop(key, member)
        return dead_letter_corrupt(row[ID], 'its row in the store does not say where it is', pack(row))
      end
    end
    if row[STATE] ~= PENDING or not row[LIMITS] then
      row[LANE] = 0
      add_to_state(row)
      save(row)
    else
      local limit_queue = limit_queue_of(row)
      row[LANE] = limit_queue[NUMBER]
      add_to_state(row)
      save(row)
      entered_limit_queue(limit_queue, row)
    end
  end

  -- Return the score of a task in the zset of its state; pending tasks have none.
  local function score_of(row)
    return (row[STATE] == PARKED or row[STATE] == DEAD_LETTER) and row[SEQ] or row[DUE]
  end

  -- Repair a task whose member in a zset was dropped as stale: make sure that it is in some zset.
  function repairs.stale(key, id)
    local row = row_of(id)
    if not row then
      if read(BLOBS, 'b' .. id) then
        dead_letter_corrupt(id, 'its row in the store is gone')
      end
    elseif key == READY and row[STATE] == PENDING then
      restore_state_entry(row)
    elseif HOME[row[STATE]] == key then
      zput(key, id, score_of(row))
    elseif key == DEADLINES then
      if row[STATE] < IN_FLIGHT and row[DEADLINE] < INF then
        zput(key, id, row[DEADLINE])
      end
    elseif not is_in(home_of(row, row[STATE])) then
      dead_letter_corrupt(id, 'its row in the store does not say where it is', pack(row))
    end
  end

  -- Limits

  -- Count the tasks in flight by the keys of their limits; nil if there are too many to read.
  local function running()
    if count(LEASES) > MANY then
      return nil
    end
    local ids, found = redis.call('ZRANGE', LEASES, 0, -1), {}
    load(ids)
    for _, id in ipairs(ids) do
      local row = cache[id]
      for _, limit in ipairs(row and row[STATE] == IN_FLIGHT and row[LIMITS] or {}) do
        found[limit[1]] = (found[limit[1]] or 0) + 1
      end
    end
    return found
  end

  function repairs.limit(key)
    limit_states[key] = {(running() or {})[key] or 0, 0, 0, false, false, -1}
    update_limit(key)
  end

  local function limit_queue_in(member)
    return string.sub(member, 1, 1) == 'l' and string.sub(member, 1, LANE_PREFIX)
  end

  local function limit_in(member)
    local length = string.match(member, '^(%d+):')
    return length and string.sub(member, 1, #length + 2 + tonumber(length))
  end

  -- Take a step for each prefix of the members, for some of them, from a cursor on. Returns the next cursor, false at the
  -- end.
  local function each_prefix(key, cursor, prefix_of, step)
    for _ = 1, SOME do
      write_zset(key)
      local member = redis.call('ZRANGEBYLEX', key, cursor, '+', 'LIMIT', 0, 1)[1]
      if not member then
        return false
      end
      local prefix = prefix_of(member)
      if prefix then
        step(prefix)
        cursor = '(' .. prefix .. '\255'
      else
        cursor = '(' .. member
      end
    end
    return cursor
  end

  -- A claim found nothing although tasks are pending: make sure that no limit queue waits for ever. Each call checks some
  -- limit queues and limits, and the next call continues there.
  local function unblock()
    local raw, counted = read(SIDE, 'w'), running()
    local readable, from = pcall(function()
      local from = unpacked(raw)
      return '' <= from[1] and '' <= from[2] and from
    end)
    from = readable and from or {'[l', '-'}
    local lanes = each_prefix(READY, from[1], limit_queue_in, function(prefix)
      local number = tonumber(string.sub(prefix, 2))
      local limit_queue = number and limit_queue_numbered(number)
      local first = limit_queue and first_in(number)
      if first then
        limit_queue[HEAD] = order_of_row(first)
        save_limit_queue(limit_queue)
      end
    end)
    local limits = each_prefix(TURNS, from[2], limit_in, function(prefix)
      local key = string.sub(prefix, #string.match(prefix, '^%d+:') + 1, -2)
      if key ~= '' then
        local limit_state = limit_state_of(key)
        limit_state[RUNNING] = counted and (counted[key] or 0) or limit_state[RUNNING]
        update_limit(key)
      end
    end)
    if lanes or limits then
      put(SIDE, 'w', pack({lanes or '+', limits or '+'}))
    elseif raw then
      put(SIDE, 'w', false)
    end
  end

  -- Comparing the parts

  local function size_of_homes()
    local number = 0
    for state = PENDING, DEAD_LETTER do
      number = number + redis.call('ZCARD', HOME[state])
    end
    return number
  end

  local function go_through(phase, cursor)
    local key = ({ROWS, READY, DELAYED, LEASES, PARKS, DEAD, DONE, CANCELS, SEQUENCES, DEADLINES, WAITS})[phase + 1]
    local found = redis.call(phase == 0 and 'HSCAN' or 'ZSCAN', key, string.format('%.0f', cursor), 'COUNT', 200)
    local ids, members, values = {}, {}, {}
    for index = 1, #found[2], 2 do
      local member = found[2][index]
      members[#members + 1], values[#values + 1] = member, tonumber(found[2][index + 1])
      if key == READY or key == WAITS then
        local skipped = (key == WAITS and 0) or string.sub(member, 1, 1) == 'l' and LANE_PREFIX or 1
        member = string.sub(member, skipped + PLACE + 1)
      end
      ids[#ids + 1] = member
    end
    load(ids)
    for index, id in ipairs(ids) do
      local row = cache[id]
      if phase == 0 and row then
        restore_state_entry(row)
        zput(SEQUENCES, id, row[SEQ])
      elseif key == SEQUENCES and not row then
        zdrop(key, id)
      elseif key == DEADLINES and not (row and row[STATE] < IN_FLIGHT) then
        zdrop(key, id)
      elseif key == WAITS and not (row and row[STATE] < IN_FLIGHT and place_of(row) .. id == members[index]) then
        zdrop(key, members[index])
      elseif phase > 0 and phase < 8 and not (row and HOME[row[STATE]] == key
        and (key ~= READY or member_of(row) == members[index])) then
        drop_stale(key, members[index], id)
      elseif row and key == SEQUENCES and values[index] ~= row[SEQ] then
        zput(key, id, row[SEQ])
      elseif row and phase > 1 and phase < 8 and values[index] ~= score_of(row) then
        zput(key, id, score_of(row))
      end
    end
    return tonumber(found[1]), #ids
  end

  -- Members that are sorted by their bytes must have the score 0.
  local function drop_scores(key)
    for _, range in ipairs({{'-inf', '(0'}, {'(0', '+inf'}}) do
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, range[1], range[2], 'LIMIT', 0, BUDGET)) do
        zput(key, member, 0)
      end
    end
  end

  -- Find far times in a zset that differ from those in the rows.
  local function set_times(key, most)
    local stored = redis.call('ZREVRANGE', key, 0, most - 1, 'WITHSCORES')
    local ids = {}
    for index = 1, #stored, 2 do
      ids[#ids + 1] = stored[index]
    end
    load(ids)
    for index, id in ipairs(ids) do
      local row = cache[id]
      if not row or HOME[row[STATE]] ~= key or row[DUE] ~= tonumber(stored[2 * index]) then
        drop_stale(key, id, id)
      end
    end
  end

  -- Compare the numbers of tasks in all parts, and check some tasks; if the numbers differ, check all of them, some at a
  -- time. Returns whether to continue at once.
  local function compare()
    local tasks = redis.call('HLEN', ROWS)
    local whole = tasks == size_of_homes() and tasks == redis.call('ZCARD', SEQUENCES)
    for _, key in ipairs({READY, WAITS, TURNS}) do
      drop_scores(key)
    end
    set_times(LEASES, 50)
    set_times(DELAYED, 5)
    local kept = tonumber(redis.call('HGET', META, 'cursor') or 0) or -1
    local phase, cursor, seen = math.floor(kept / PHASE), kept % PHASE, 0
    if not (0 <= phase and phase <= 10 and cursor % 1 == 0) then -- damage
      phase, cursor = 0, 0
    end
    repeat
      local some
      cursor, some = go_through(phase, cursor)
      seen = seen + some
      if cursor == 0 then
        phase = phase + 1
      end
    until phase > 10 or seen > (whole and FEW or BUDGET)
    set('cursor', phase > 10 and 0 or phase * PHASE + cursor)
    local goes_on = not whole and phase <= 10
    set('checked', goes_on and GO_ON or now)
    return goes_on
  end

  -- Repair what was found, and what is found during repairs

  local goes_on, sooner = false, changed
  if checks and not (broken[1] or next(dirty) or next(forgotten)) then
    goes_on = compare()
    if not broken[1] and count(READY) > 0 and meta.paused == 0 then
      unblock()
    end
  end
  for _, one in ipairs(broken) do
    if one[1] == 'stale' and one[2] == LEASES then
      held[one[3]] = true
    end
  end
  local index = 1
  while broken[index] and index <= 10 * BUDGET do
    local one = broken[index]
    repairs[one[1]](one[2], one[3], one[4])
    index = index + 1
  end
  if run_again and (goes_on or broken[1] or changed ~= sooner) then
    run_again()
  end
end
