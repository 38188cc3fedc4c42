-- The action "tokenbroker" lets the broker verify the token of a request. Its argument is
-- a query with the requirements for the token. It sets txn.broker_status, 0 without a
-- response, and variables with the identity, the upstream token, the challenge and the body of
-- the response.
local broker = "http://127.0.0.1:8444/verify?"
local identity = { subject = "x-auth-subject", subject_type = "x-auth-subject-type", issuer = "x-auth-issuer", client_id = "x-auth-client-id", scope = "x-auth-scope", actor = "x-auth-actor", token = "authorization" }

core.register_action("tokenbroker", { "http-req" }, function(txn, needs)
    txn:set_var("txn.broker_status", 0)
    local headers = { accept = { "application/json" } }
    local authorization = txn.http:req_get_headers()["authorization"]
    if authorization then
        headers["authorization"] = {}
        for i = 0, #authorization do
            table.insert(headers["authorization"], authorization[i])
        end
    end
    local answer = core.httpclient():get { url = broker .. needs, headers = headers, timeout = 2000 }
    if not answer or not answer.status then
        return
    end
    local function first(name)
        local values = answer.headers and answer.headers[name]
        return values and values[0] or ""
    end
    for name, header in pairs(identity) do
        txn:set_var("txn.broker_" .. name, first(header))
    end
    txn:set_var("txn.broker_challenge", first("www-authenticate"))
    local body = (answer.body or ""):gsub("%s+$", "") -- HAProxy writes a line end as %0A
    txn:set_var("txn.broker_body", body)
    txn:set_var("txn.broker_status", answer.status)
end, 1)
