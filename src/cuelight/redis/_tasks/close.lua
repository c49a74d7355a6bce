-- The end of a step: what was changed is written, those who wait are told, and a queue that is at rest gets an end.

local packed, close_step, head, reply_with

do
  local function write_hashes()
    for key, fresh in pairs(puts) do
      local added, dropped = {}, {}
      for field, value in pairs(fresh) do
        if value then
          added[#added + 1] = field
          added[#added + 1] = value
        else
          dropped[#dropped + 1] = field
        end
      end
      puts[key] = {}
      send('HDEL', key, dropped)
      send('HSET', key, added)
    end
  end

  packed = {} -- rows as they were written

  local function write_rows()
    local added, dropped = {}, {}
    for id, row in pairs(dirty) do
      local raw = pack(row)
      packed[id] = raw
      added[#added + 1] = id
      added[#added + 1] = raw
    end
    for id in pairs(forgotten) do
      dropped[#dropped + 1] = id
    end
    dirty, forgotten = {}, {}
    send('HDEL', ROWS, dropped)
    send('HSET', ROWS, added)
  end

  -- A queue in which nothing waits, runs or lies dead needs to be kept no longer than its results, unless somebody has
  -- paused or closed it, or has overridden a limit: its keys get a time to live, which the next task takes away again.
  -- Periodic work is kept.

  local function quiet()
    return meta.paused + meta.closed + meta.overrides == 0
      and redis.call('EXISTS', READY, DELAYED, LEASES, PARKS, DEAD) == 0
  end

  local function last_end()
    local last = now
    for _, key in ipairs({DONE, CANCELS, ENDS, GATES}) do
      last = math.max(last, tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2] or 0))
    end
    return last
  end

  local function each_key(command, ...)
    for index, key in ipairs(KEYS) do
      if index ~= 5 then
        redis.call(command, key, ...)
      end
    end
  end

  local expiring -- milliseconds

  -- `tidy`: "idle" looks whether the queue is at rest if that was not found out a moment ago, "now" in any case.
  local function rest_or_rise(tidy)
    local resting = meta.resting == 1
    if resting and not changed or not resting and not tidy then
      return
    end
    if not resting and tidy == 'idle' and meta.rested <= now and now < meta.rested + THROTTLE then
      return
    end
    local last = quiet() and last_end() or INF
    if last - now < AGES then
      set('resting', 1)
      set('rested', now)
      expiring = string.format('%.0f', (last - now + QUIET) * 1000)
    elseif resting then
      set('resting', 0)
      each_key('PERSIST')
    end
  end

  local function write_meta()
    local fields = {}
    if next(meta_fresh) and meta.format == 0 then
      set('format', FORMAT)
    end
    for name in pairs(meta_fresh) do
      fields[#fields + 1] = name
      fields[#fields + 1] = exact(meta[name])
    end
    send('HSET', META, fields)
  end

  -- Write all. `wanting` is who waits from now on: "hungry" for something to claim, "watched" for anything.
  function close_step(wanting, tidy)
    write_rows()
    write_zsets()
    write_hashes()
    if changed then
      set('version', meta.version + 1)
      set('stirred', meta.stirred + (stirs and 1 or 0))
      set('time', now)
      if meta.watched == 1 or (stirs and meta.hungry == 1) then
        redis.call(ARGV[3], ARGV[2], string.format('%.0f %.0f', meta.version, meta.stirred))
        set('watched', 0)
        set('hungry', stirs and 0 or meta.hungry)
      end
    end
    if wanting then
      set(wanting, 1)
    end
    rest_or_rise(tidy)
    write_meta()
    if expiring then
      each_key('PEXPIRE', expiring)
    end
  end

  function head(answer)
    return pack({now, meta.version, meta.stirred, answer})
  end

  -- Put tasks behind a reply: of each its row, and its blobs of some kinds, "" for one that it has not (its row says so).
  function reply_with(reply, given, kinds)
    local flags, fields, places = {s = STORY, c = CHECKPOINT, p = PROGRESS, r = RESULT}, {}, {}
    for _, row in ipairs(given) do
      reply[#reply + 1] = packed[row[ID]] or pack(row)
      for _, kind in ipairs(kinds) do
        reply[#reply + 1] = ''
        if kind == 'b' or bit.band(row[HAS], flags[kind]) > 0 then
          fields[#fields + 1] = kind .. row[ID]
          places[#places + 1] = #reply
        end
      end
    end
    for first = 1, #fields, 1000 do
      local last = math.min(first + 999, #fields)
      for index, value in ipairs(redis.call('HMGET', BLOBS, unpack(fields, first, last))) do
        reply[places[first + index - 1]] = value or ''
      end
    end
    return reply
  end
end
