-- A sliding window with a log. A row is {limit, window}. A limit is {used}: the total cost of the entries of its log.
-- An entry is `cost:request`, scored by the time of its admission. A request admitted at time t no longer counts at
-- t + window.

local function cost_of(entry)
  return tonumber(string.match(entry, '^%d+'))
end

function meter.step(i)
  local key, limit = KEYS[6 + i], limits[i]
  if not limit then
    limits[i] = {0}
    call('DEL', key)
    return
  end
  check(limit[1], 1)
  if clock_went_back then
    for _, entry in ipairs(call('ZRANGEBYSCORE', key, '(' .. whole(now), '+inf')) do
      call('ZADD', key, whole(now), entry)
    end
  end
  local gone
  repeat
    gone = call('ZRANGEBYSCORE', key, '-inf', whole(now - rows[i][2]), 'LIMIT', 0, 1000)
    for _, entry in ipairs(gone) do
      limit[1] = limit[1] - cost_of(entry)
    end
    if #gone > 0 then
      call('ZREMRANGEBYRANK', key, 0, #gone - 1)
    end
  until #gone < 1000
end

function meter.available_in(i, cost, ahead)
  local max_cost, window = rows[i][1], rows[i][2]
  local total = ahead + min(cost, max_cost)
  if total == 0 then
    return 0
  end
  -- First the whole windows that the requests ahead fill, then the time until enough current entries expire.
  local windows, rest = floor((total - 1) / max_cost), (total - 1) % max_cost
  local lacking, from = rest + 1 - (max_cost - limits[i][1]), 0
  if lacking <= 0 then
    return windows * window
  end
  while true do
    local entries = call('ZRANGE', KEYS[6 + i], from, from + 99, 'WITHSCORES')
    for n = 1, #entries, 2 do
      lacking = lacking - cost_of(entries[n])
      if lacking <= 0 then
        return tonumber(entries[n + 1]) + (windows + 1) * window - now
      end
    end
    if #entries == 0 then
      return (windows + 1) * window -- the server has lost part of the log
    end
    from = from + 100
  end
end

local function enter(i, at, cost, id)
  local key = KEYS[6 + i]
  call('ZADD', key, whole(at), whole(cost) .. ':' .. id)
  call('PEXPIRE', key, whole(ceil(rows[i][2] / 1000) + RECENT))
end

function meter.charge(i, cost, late, id)
  if cost > 0 then
    enter(i, now, cost, id)
    limits[i][1] = limits[i][1] + cost
  end
  return {now}
end

function meter.adjust(i, ticket, was, cost, id)
  if ticket[1] > now - rows[i][2] and (was == 0 or call('ZREM', KEYS[6 + i], whole(was) .. ':' .. id) == 1) then
    if cost > 0 then
      enter(i, ticket[1], cost, id)
    end
    limits[i][1] = limits[i][1] + cost - was
  end
  return ticket
end

function meter.remaining(i)
  return max(0, rows[i][1] - limits[i][1])
end

function meter.unused(i)
  local last = call('ZREVRANGE', KEYS[6 + i], 0, 0, 'WITHSCORES')
  return last[2] and max(0, tonumber(last[2]) + rows[i][2] - now) or 0
end

function meter.max_cost(i)
  return rows[i][1]
end
