-- Charge a limit of a token bucket; nil if it has no room for the cost, or needs the general form. See `bucket.lua`.
local function charge(row, limit, cost, now, elapsed)
  local owed, interval, scale = limit[1], limit[2], limit[3]
  if interval ~= row[1] or scale ~= row[2] or cost > row[3] or not (owed > -2 ^ 60 and owed < 2 ^ 60) then
    return
  end
  owed = math.max(-2 ^ 52, owed - elapsed * scale)
  if cost > 0 and owed > (row[3] - cost) * interval then
    return
  end
  owed = math.max(owed, 0) + cost * interval
  limit[1] = owed
  return {now, owed, interval, scale}, math.max(0, row[3] - math.ceil(owed / interval)), math.ceil(owed / scale)
end
