-- Compare-and-swap over many keys. Per key three arguments:
--   what must be there: '' for nothing, else '=' and the value
--   the new value
--   how long it lives: milliseconds, '0' for ever, '-' to delete
-- Answers per key: nil if done, 0 if there was nothing, the value if there was another.
-- pcall, so that an error belongs to its key and never leaves the batch half done and half unknown.
local out = {}
for i = 1, #KEYS do
  local key, at = KEYS[i], 3 * i
  local is = redis.pcall('GET', key)
  if type(is) == 'table' then
    out[i] = is
  elseif (is and '=' .. is or '') ~= ARGV[at - 2] then
    out[i] = is or 0
  else
    local ttl, done = ARGV[at], nil
    if ttl == '-' then
      done = redis.pcall('DEL', key)
    elseif ttl == '0' then
      done = redis.pcall('SET', key, ARGV[at - 1])
    else
      done = redis.pcall('SET', key, ARGV[at - 1], 'PX', ttl)
    end
    out[i] = type(done) == 'table' and done.err and done or false
  end
end
return out
