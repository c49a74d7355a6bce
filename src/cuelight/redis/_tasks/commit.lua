-- The end of each step, after repairs: it writes all changes, notifies waiting callers, gives the keys of a queue at rest a
-- time to live, and builds the reply. The script has set `answer`, and then either `shown` and `kinds`, the tasks and the
-- kinds of their blobs, or `rest`, a list of bytes.
--
-- `wanting` is a requested notification: "hungry" for claimable tasks, "watched" for any change. `tidy` is when to check
-- whether the queue is at rest: "idle" unless it was found at rest a moment ago, "now" in any case.
--
-- No functions are created here, because they would cost time in each step.

local packed = {} -- encoded rows

do
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
  send('HDEL', ROWS, dropped)
  send('HSET', ROWS, added)
end

write_zsets()

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
  send('HDEL', key, dropped)
  send('HSET', key, added)
end

if changed then
  set('version', meta.version + 1)
  set('stirred', meta.stirred + (makes_claimable and 1 or 0))
  set('time', now)
  if meta.watched == 1 or (makes_claimable and meta.hungry == 1) then
    redis.call(ARGV[3], ARGV[2], string.format('%.0f %.0f', meta.version, meta.stirred))
    set('watched', 0)
    set('hungry', makes_claimable and 0 or meta.hungry)
  end
end
if wanting then
  set(wanting, 1)
end

-- A queue without waiting tasks, running tasks and dead letters is at rest, unless it is paused or closed, or has an
-- overridden limit. Its keys get a time to live that covers its results; the next task removes it. Schedules are kept.

local expiring -- milliseconds
if (changed or meta.resting ~= 1) and (tidy or meta.resting == 1) and not (meta.resting ~= 1 and tidy == 'idle'
  and meta.rested <= now and now < meta.rested + THROTTLE) then
  local last = INF
  if meta.paused + meta.closed + meta.overrides == 0 and redis.call('EXISTS', READY, DELAYED, LEASES, PARKS, DEAD) == 0 then
    last = now
    for _, key in ipairs({DONE, CANCELS, ENDS, GATES}) do
      last = math.max(last, tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2] or 0))
    end
  end
  if last - now < AGES then
    set('resting', 1)
    set('rested', now)
    expiring = string.format('%.0f', (last - now + QUIET) * 1000)
  elseif meta.resting == 1 then
    set('resting', 0)
    for index, key in ipairs(KEYS) do
      if index ~= 5 and index ~= 20 then
        redis.call('PERSIST', key)
      end
    end
  end
end

do
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
if expiring then
  for index, key in ipairs(KEYS) do
    if index ~= 5 and index ~= 20 then
      redis.call('PEXPIRE', key, expiring)
    end
  end
end

-- For each task in `shown`, its row and its blobs, "" for a missing one (see its row).

local reply = {'', pack({now, meta.version, meta.stirred, answer})}
for _, value in ipairs(rest or {}) do
  reply[#reply + 1] = value
end
if shown and shown[1] then
  local flags, fields, at = {s = STORY, c = CHECKPOINT, p = PROGRESS, r = RESULT}, {}, {}
  for _, row in ipairs(shown) do
    reply[#reply + 1] = packed[row[ID]] or pack(row)
    for _, kind in ipairs(kinds) do
      reply[#reply + 1] = ''
      if kind == 'b' or bit.band(row[HAS], flags[kind]) > 0 then
        fields[#fields + 1] = kind .. row[ID]
        at[#at + 1] = #reply
      end
    end
  end
  for first = 1, #fields, 1000 do
    local last = math.min(first + 999, #fields)
    for index, value in ipairs(redis.call('HMGET', BLOBS, unpack(fields, first, last))) do
      reply[at[first + index - 1]] = value or ''
    end
  end
end
return reply
