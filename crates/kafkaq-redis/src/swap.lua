-- Compare-and-swap over many keys. Per key three arguments:
--   what must be there: '' for nothing, else '=' and the value
--   the new value
--   how long it lives: milliseconds, '0' for ever, '-' to delete
-- Answers how many keys it has seen to, and for each that was not swapped its number and what was there: 0 for nothing,
-- else the value, or the error.
-- pcall, so that an error belongs to its key and never leaves the batch half done and half unknown.
local out = { #KEYS }
local function tell(number, what)
  out[#out + 1] = number
  out[#out + 1] = what
end
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i
  local is = redis.pcall('GET', key)
  if type(is) == 'table' then
    tell(i, is)
  elseif (is and '=' .. is or '') ~= ARGV[at - 2] then
    tell(i, is or 0)
  else
    local ttl, done = ARGV[at], nil
    if ttl == '-' then
      done = redis.pcall('DEL', key)
    elseif ttl == '0' then
      done = redis.pcall('SET', key, ARGV[at - 1])
    else
      done = redis.pcall('SET', key, ARGV[at - 1], 'PX', ttl)
    end
    if type(done) == 'table' and done.err then
      tell(i, done)
    end
  end
end
return out
