-- wrk's requests: the lines of a file, over and over, and at the end one line of JSON.
--
-- A line is: method, path, Authorization, X-Forwarded-For, body, between tabs, "-" for none. {n} in a
-- body becomes a number that no other request of the run has.

local requests, position, count = {}, 0, 0

function init(arguments)
   for line in io.lines(arguments[1]) do
      local method, path, authorization, forwarded_for, body =
         line:match("^(%S+)\t(%S+)\t([^\t]+)\t(%S+)\t(.+)$")
      local headers = {}
      if authorization ~= "-" then headers["Authorization"] = authorization end
      if forwarded_for ~= "-" then headers["X-Forwarded-For"] = forwarded_for end
      if body == "-" then
         requests[#requests + 1] = wrk.format(method, path, headers)
      else
         headers["Content-Type"] = "application/json"
         if body:find("{n}", 1, true) then
            requests[#requests + 1] = {method, path, headers, body}
         else
            requests[#requests + 1] = wrk.format(method, path, headers, body)
         end
      end
   end
   position = tonumber(arguments[2]) % #requests
   mark = arguments[2]
end

function request()
   position = position % #requests + 1
   local found = requests[position]
   if type(found) == "string" then return found end
   count = count + 1
   local body = found[4]:gsub("{n}", mark .. "x" .. count)
   return wrk.format(found[1], found[2], found[3], body)
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '\nRESULT {"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, ' ..
      '"p50": %f, "p99": %f}\n',
      summary.requests, summary.duration, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
