-- One step of the protocol on one entry of the cache. An entry is a hash:
--   v          its value
--   n          the nonce that readers who found nothing were given
--   t<token>   the mark of a writer: until when it counts, in milliseconds
--   c          marks overlapped: nobody knows which of the writes came last
-- While there is a mark there is neither value nor nonce. Everything may vanish at any time.
--
-- What takes memory comes first in each step: after any other change the server no longer looks whether it is full.
local key, step = KEYS[1], ARGV[1]

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- How many marks count; those of writers that died are removed.
local function marks()
    local count, at = 0, now()
    for _, field in ipairs(redis.call('HKEYS', key)) do
        if string.sub(field, 1, 1) == 't' then
            if tonumber(redis.call('HGET', key, field)) > at then
                count = count + 1
            else
                redis.call('HDEL', key, field)
            end
        end
    end
    return count
end

if step == 'get' then
    -- nonce, its time to live
    local value = redis.call('HGET', key, 'v')
    if value then return {1, value} end
    if marks() > 0 then return {2} end
    local nonce = redis.call('HGET', key, 'n')
    if nonce then return {0, nonce} end
    redis.call('HSET', key, 'n', ARGV[2])
    redis.call('HDEL', key, 'c')
    redis.call('PEXPIRE', key, ARGV[3])
    return {0, ARGV[2]}
elseif step == 'fill' then
    -- nonce, value, its time to live
    if redis.call('HGET', key, 'n') ~= ARGV[2] then return {0} end
    redis.call('HSET', key, 'v', ARGV[3])
    redis.call('HDEL', key, 'n', 'c')
    redis.call('PEXPIRE', key, ARGV[4])
    return {1}
elseif step == 'mark' then
    -- token, its time to live
    redis.call('HSET', key, 't' .. ARGV[2], now() + ARGV[3])
    redis.call('HDEL', key, 'v', 'n')
    -- One of them is this writer's own.
    if marks() > 1 then redis.call('HSET', key, 'c', '1') end
    redis.call('PEXPIRE', key, ARGV[3])
    return {1}
elseif step == 'finish' then
    -- token, perhaps the value that was written and its time to live
    local own = redis.call('HDEL', key, 't' .. ARGV[2])
    local others = marks()
    if own == 0 then
        -- The mark was lost: what is there may have been read before the write.
        if others > 0 then
            redis.call('HDEL', key, 'v', 'n')
            redis.call('HSET', key, 'c', '1')
        else
            redis.call('DEL', key)
        end
        return {0}
    end
    if others > 0 then return {1} end
    local overlapped = redis.call('HGET', key, 'c')
    redis.call('DEL', key)
    if not ARGV[3] or overlapped then return {1} end
    redis.call('HSET', key, 'v', ARGV[3])
    redis.call('PEXPIRE', key, ARGV[4])
    return {2}
end
return redis.error_reply('unknown step')
