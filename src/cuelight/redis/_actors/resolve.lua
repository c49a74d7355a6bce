-- Return the owner of a name. Changes nothing.
--
-- KEYS[1] members, KEYS[2] names   (see join.lua and register_name.lua)
-- ARGV    name
--
-- Returns {value} if a member has it, else {false, up to 1,000 existing names}.
local present = redis.call('HGET', KEYS[2], ARGV[1])
if present then
  local owner = string.match(present, '^(%S+) %d+ ')
  if not owner or redis.call('ZSCORE', KEYS[1], owner) then
    return {present} -- the caller rejects a value that is no address
  end
end
local names, known = {}, redis.call('HKEYS', KEYS[2])
for index = 1, math.min(#known, 1000) do
  names[index] = known[index]
end
return {'', names}
