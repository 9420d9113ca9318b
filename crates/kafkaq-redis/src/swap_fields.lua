-- Compare-and-swap over many fields of hashes, which are the keys. Per hash three arguments:
--   how long the new values live: milliseconds, '0' for ever, '-' to delete
--   what must be there: '' for nothing, '=' for values
--   how many fields
-- then per field its name, and the new value if any; and then per field the value that must be there, if any.
-- Answers how many fields it has seen to, and for each that was not swapped its number and what was there: 0 for nothing,
-- else the value, or the error.
-- redis.pcall, so that an error belongs to its hash and never leaves the batch half done and half unknown.
local keys, argv, try = KEYS, ARGV, redis.pcall
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
for i = 1, #keys do
  local key, ttl, expects, count = keys[i], argv[at], argv[at + 1] == '=', tonumber(argv[at + 2])
  local sets = ttl ~= '-'
  local width = sets and 2 or 1
  local first, last = at + 3, at + 2 + width * count
  -- -2 if there is no hash.
  local left, is, refused = try('PTTL', key), {}, nil
  if type(left) == 'table' then
    refused = left
  elseif left ~= -2 then
    local names = {}
    for n = 1, count do
      names[n] = argv[first + width * (n - 1)]
    end
    is = try('HMGET', key, unpack(names))
    refused = is.err and is
  end
  -- The numbers of fields that are not swapped.
  local kept, fields = {}, count
  for n = 1, count do
    local there = refused or is[n] or false
    if there ~= (expects and argv[last + n]) then
      tell(n, there or 0)
      kept[n], fields = true, fields - 1
    end
  end
  if fields > 0 then
    local command, done = sets and 'HSET' or 'HDEL', nil
    if fields == count then
      done = try(command, key, unpack(argv, first, last))
    else
      local changes = {}
      for name = first, last do
        if not kept[1 + math.floor((name - first) / width)] then
          changes[#changes + 1] = argv[name]
        end
      end
      done = try(command, key, unpack(changes))
    end
    if type(done) == 'table' then
      for n = 1, count do
        if not kept[n] then
          tell(n, done)
        end
      end
    elseif sets and not pcall(keep, key, ttl, left, fields) then
      -- Nothing says what was done and what wasn't.
      error('HSET is allowed, and PEXPIRE, PERSIST or HLEN is not')
    end
  end
  at, before = last + (expects and count or 0) + 1, before + count
end
out[1] = before
return out
