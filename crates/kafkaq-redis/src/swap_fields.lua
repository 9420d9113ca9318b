-- Compare-and-swap over many fields of hashes, which are the keys. Per hash three arguments:
--   how long the new values live: milliseconds, '0' for ever, '-' to delete
--   what must be there: '' for nothing, '=' for values
--   how many fields
-- and then per field its name, the value that must be there if any, and the new one if any.
-- Answers how many fields it has seen to, and for each that was not swapped its number and what was there: 0 for nothing,
-- else the value, or the error.
-- pcall, so that an error belongs to its hash and never leaves the batch half done and half unknown.
local out, at, before = { 0 }, 1, 0
local function tell(number, what)
  out[#out + 1] = before + number
  out[#out + 1] = what
end
-- A hash lives as long as the longest of its values may. That is known only when all were swapped; otherwise its life is
-- prolonged, never cut. A little too long is not worth a command.
local function keep(key, ttl, left, fields)
  local want, has = tonumber(ttl), left
  if ttl == '0' then
    want = math.huge
  end
  if left == -1 then
    has = math.huge
  end
  if has < want or (has > 2 * want and redis.call('HLEN', key) == fields) then
    if ttl == '0' then
      redis.call('PERSIST', key)
    else
      redis.call('PEXPIRE', key, ttl)
    end
  end
end
for i = 1, #KEYS do
  local key, ttl, expects, count = KEYS[i], ARGV[at], ARGV[at + 1] == '=', tonumber(ARGV[at + 2])
  local sets = ttl ~= '-'
  local width = 1 + (expects and 1 or 0) + (sets and 1 or 0)
  local first, last = at + 3, at + 2 + width * count
  -- -2 if there is no hash.
  local left, is, refused = redis.pcall('PTTL', key), {}, nil
  if type(left) == 'table' then
    refused = left
  elseif left ~= -2 then
    local fields = {}
    for name = first, last, width do
      fields[#fields + 1] = ARGV[name]
    end
    is = redis.pcall('HMGET', key, unpack(fields))
    refused = is.err and is
  end
  local changes, changed, number = {}, {}, 0
  for name = first, refused and 0 or last, width do
    number = number + 1
    local there = is[number] or false
    if there ~= (expects and ARGV[name + 1]) then
      tell(number, there or 0)
    else
      changed[#changed + 1] = number
      changes[#changes + 1] = ARGV[name]
      if sets then
        changes[#changes + 1] = ARGV[name + width - 1]
      end
    end
  end
  if #changes > 0 then
    local done = redis.pcall(sets and 'HSET' or 'HDEL', key, unpack(changes))
    if type(done) == 'table' then
      for _, refused_number in ipairs(changed) do
        tell(refused_number, done)
      end
    elseif sets and not pcall(keep, key, ttl, left, #changes / 2) then
      -- Nothing says what was done and what wasn't.
      error('HSET is allowed, and PEXPIRE, PERSIST or HLEN is not')
    end
  end
  for n = 1, refused and count or 0 do
    tell(n, refused)
  end
  at, before = last + 1, before + count
end
out[1] = before
return out
