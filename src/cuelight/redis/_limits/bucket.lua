-- A token bucket by GCRA. A row is {interval, scale, burst}: a cost of 1 is paid off in `interval` ticks, of which
-- `scale` are a microsecond. A limit is {owed, interval, scale}: the debt in ticks. It goes below 0 with the time since
-- the debt was paid off, so that a late amendment has the effect of charging the real cost at the start.

function meter.step(i)
  local row, limit = rows[i], limits[i]
  if not limit then
    limits[i] = {-NEVER, row[1], row[2]}
    return
  end
  check(limit[1] + limit[2] + limit[3], min(limit[2], limit[3]))
  limit[1] = max(-NEVER, limit[1] - elapsed * limit[3])
  if limit[2] ~= row[1] or limit[3] ~= row[2] then
    -- The limit has changed: the debt stays the same in units.
    limit[1] = ceil(max(0, limit[1]) / limit[2] * row[1])
    limit[2], limit[3] = row[1], row[2]
  end
end

function meter.available_in(i, cost, ahead)
  local row, owed = rows[i], limits[i][1]
  if ahead > 0 then
    owed = max(0, owed) + ahead * row[1]
  end
  return ceil((owed - max(0, row[3] - cost) * row[1]) / row[2])
end

function meter.charge(i, cost, late)
  local limit = limits[i]
  limit[1] = max(limit[1], -late * limit[3]) + cost * limit[2]
  return {now, limit[1], limit[2], limit[3]}
end

function meter.adjust(i, ticket, was, cost)
  local limit = limits[i]
  local change = (cost - was) * limit[2]
  if change < 0 then
    -- Only the part that is not paid off is refunded. For a booking at another pace that part is unknown: no refund.
    local owed = 0
    if ticket[3] == limit[2] and ticket[4] == limit[3] then
      owed = max(0, ticket[2] - max(0, now - ticket[1]) * limit[3])
    end
    change = -min(-change, owed)
  end
  limit[1] = limit[1] + change
  return {ticket[1], ticket[2] + change, ticket[3], ticket[4]}
end

function meter.remaining(i)
  return max(0, rows[i][3] - ceil(max(0, limits[i][1]) / rows[i][1]))
end

function meter.unused(i)
  return ceil(max(0, limits[i][1]) / rows[i][2])
end

function meter.max_cost(i)
  return rows[i][3]
end
