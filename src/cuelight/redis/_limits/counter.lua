-- A sliding window of two counters. A row is {limit, window}; windows begin at multiples of their length. A limit is
-- {index, last, this, window}: the index of this window, and the costs admitted in the last window and in this one. The
-- costs of the last window count as spread evenly over it.

local function into(i)
  return now % rows[i][2]
end

local function used(i)
  local limit, window = limits[i], rows[i][2]
  return limit[3] + ceil(limit[2] * (window - into(i)) / window)
end

local function roll(limit, window)
  local index = floor(now / window)
  if index > limit[1] then
    limit[2] = index == limit[1] + 1 and limit[3] or 0
    limit[3] = 0
  end
  limit[1] = index
end

function meter.step(i)
  local window, limit = rows[i][2], limits[i]
  if not limit then
    limits[i] = {floor(now / window), 0, 0, window}
    return
  end
  check(limit[1] + limit[2] + limit[3] + limit[4], limit[4])
  roll(limit, limit[4])
  if limit[4] ~= window then
    -- The window has changed: the cost that counts now counts as admitted in the new window.
    local counts = limit[3] + ceil(limit[2] * (limit[4] - now % limit[4]) / limit[4])
    limits[i] = {floor(now / window), 0, counts, window}
  end
end

function meter.available_in(i, cost, ahead)
  local max_cost, window, limit = rows[i][1], rows[i][2], limits[i]
  local last, this = limit[2], limit[3]
  cost = min(cost, max_cost)
  -- Each window admits the limit at most, so the requests ahead delay it by whole windows.
  local windows = ahead > 0 and floor((min(this, max_cost) + ahead + cost - 1) / max_cost) or 0
  local room = max_cost - min(max_cost, ahead + cost)
  local at
  if this <= room then
    at = last > 0 and max(into(i), window - floor((room - this) * window / last)) or into(i)
  else
    at = 2 * window - floor(room * window / this)
  end
  return max(at, windows * window) - into(i)
end

function meter.charge(i, cost)
  limits[i][3] = limits[i][3] + cost
  return {limits[i][1], limits[i][4]}
end

function meter.adjust(i, ticket, was, cost)
  local limit = limits[i]
  if ticket[2] == limit[4] then
    if ticket[1] == limit[1] then
      limit[3] = max(0, limit[3] + cost - was)
    elseif ticket[1] == limit[1] - 1 then
      limit[2] = max(0, limit[2] + cost - was)
    end
  end
  return ticket
end

function meter.remaining(i)
  return max(0, rows[i][1] - used(i))
end

function meter.unused(i)
  local limit = limits[i]
  local windows = limit[3] > 0 and 2 or limit[2] > 0 and 1 or 0
  return windows > 0 and windows * rows[i][2] - into(i) or 0
end

function meter.max_cost(i)
  return rows[i][1]
end
