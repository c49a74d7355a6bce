-- Charge a limit of two counters; nil if it has no room for the cost, or needs the general form. See `counter.lua`.
local function charge(row, limit, cost, now)
  local max_cost, window, last, this = row[1], row[2], limit[2], limit[3]
  local sum = limit[1] + last + this
  if limit[4] ~= window or cost > max_cost or not (sum > -2 ^ 60 and sum < 2 ^ 60) then
    return
  end
  local index = math.floor(now / window)
  if index > limit[1] then
    last, this = index == limit[1] + 1 and this or 0, 0
  end
  local into = now % window
  if cost > 0 then
    local room = max_cost - cost
    if this > room or (last > 0 and math.floor((room - this) * window / last) < window - into) then
      return
    end
  end
  this = this + cost
  limit[1], limit[2], limit[3] = index, last, this
  local windows = this > 0 and 2 or last > 0 and 1 or 0
  local left = math.max(0, max_cost - this - math.ceil(last * (window - into) / window))
  return {index, window}, left, windows > 0 and windows * window - into or 0
end
