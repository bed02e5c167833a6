DROP INDEX IF EXISTS jobs_of_an_endpoint;
DELETE FROM jobs WHERE kind = 'delivery';
DROP TABLE IF EXISTS webhook_attempts;
DROP TABLE IF EXISTS webhook_deliveries;
DROP TABLE IF EXISTS webhook_messages;
DROP TABLE IF EXISTS webhook_endpoints;
