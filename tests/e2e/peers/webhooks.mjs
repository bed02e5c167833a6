// Svix's library and that of Standard Webhooks, as receivers of our webhooks.
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";
import { run } from "./person.mjs";

await run(async ({ secret, otherSecret, webhooks }) => {
  const seen = {};
  for (const [name, Library] of Object.entries({ svix: SvixWebhook, standard: StandardWebhook })) {
    const outcome = (key, body, headers) => {
      try {
        new Library(key).verify(body, headers);
        return "verified";
      } catch (error) {
        return error.constructor.name;
      }
    };
    seen[name] = webhooks.map(({ body, headers }) => ({
      genuine: outcome(secret, body, headers),
      ofAnother: outcome(otherSecret, body, headers),
      tampered: outcome(secret, body.replace("test", "text"), headers),
      replayed: outcome(secret, body, { ...headers, "webhook-timestamp": "1764150000" }),
    }));
  }
  return seen;
});
