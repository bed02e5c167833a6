// A person with a browser: opens the page, fills in its form, is sent back to the application.

const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&" };

function attribute(tag, name) {
  const [, value] = tag.match(new RegExp(` ${name}="([^"]*)"`));
  return value.replace(/&(?:lt|gt|quot|#x27|amp);/g, (entity) => ENTITIES[entity]);
}

/** Return the address that the browser is sent to. `decision` is "allow" or "deny". */
export async function decide(url, { email, password }, decision) {
  const page = await fetch(url, { redirect: "manual" });
  const html = await page.text();
  if (page.status !== 200) throw new Error(`no page: ${page.status} ${html}`);
  const form = new URLSearchParams({ email, password, decision });
  for (const [tag] of html.matchAll(/<input type="hidden"[^>]*>/g))
    form.append(attribute(tag, "name"), attribute(tag, "value"));
  const action = attribute(html.match(/<form[^>]*>/)[0], "action");
  const cookies = page.headers.getSetCookie().map((cookie) => cookie.split(";")[0]);
  const answer = await fetch(new URL(action, url), {
    method: "POST",
    body: form,
    headers: { cookie: cookies.join("; ") },
    redirect: "manual",
  });
  if (answer.status !== 303) throw new Error(`not sent back: ${answer.status} ${await answer.text()}`);
  return new URL(answer.headers.get("location"));
}

/** Return the address with one parameter changed, or left out. */
export function changed(url, name, value) {
  const copy = new URL(url);
  if (value === undefined) copy.searchParams.delete(name);
  else copy.searchParams.set(name, value);
  return copy;
}

/** Return how a promise is refused: an OAuth error where there is one, else the library's code. */
export async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return error.error ?? error.code ?? String(error);
  }
  return "accepted";
}

/** Read what the test has to say, let `judge` work on it, and write what it has seen. */
export async function run(judge) {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  console.log(JSON.stringify(await judge(JSON.parse(Buffer.concat(chunks).toString()))));
}
