"use strict";
// Fingerprint and face (WebAuthn). What asks for them stands in a template, which is shown where the browser can do it.
(async () => {
  const place = document.querySelector("template[data-passkey]");
  const ours = window.PublicKeyCredential;
  if (!place || !ours || !navigator.credentials) return;
  const { device } = place.dataset;
  let ceremony = place.dataset.passkey;
  const can = async (what) => { try { return Boolean(ours[what] && await ours[what]()); } catch { return false; } };
  const here = await can("isUserVerifyingPlatformAuthenticatorAvailable");
  const filled = ceremony === "get" && await can("isConditionalMediationAvailable");
  if (device === "this" ? !here : !here && !filled && device !== "any") return;

  for (const other of document.querySelectorAll("[data-without-passkey]")) other.hidden = true;
  for (const other of document.querySelectorAll("[data-beside-passkey]")) other.classList.add("second");
  const shown = place.content.cloneNode(true);
  const form = shown.querySelector("form");
  const button = form.querySelector("button");
  const heading = shown.querySelector("h1"); // in place of the page's own
  place.replaceWith(shown);
  if (heading) document.title = heading.innerText + document.title.slice(document.title.lastIndexOf(" – "));

  const octets = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const text = (buffer) => buffer ? btoa(String.fromCharCode(...new Uint8Array(buffer)))
    .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "") : undefined;
  const say = (what) => {
    for (const one of form.querySelectorAll("[data-said]")) one.hidden = one.dataset.said !== what;
    button.disabled = false;
  };

  async function ask() {
    const answer = await fetch(form.dataset.options, { method: "POST", body: new FormData(form) });
    if (!answer.ok || answer.redirected) throw Object.assign(new Error(), { name: answer.status < 500 ? "Over" : "Away" });
    const { publicKey } = await answer.json();
    publicKey.challenge = octets(publicKey.challenge);
    if (publicKey.user) publicKey.user.id = octets(publicKey.user.id);
    for (const list of [publicKey.excludeCredentials, publicKey.allowCredentials])
      for (const one of list || []) one.id = octets(one.id);
    return { publicKey };
  }

  function send({ id, rawId, type, response }) {
    const parts = { clientDataJSON: text(response.clientDataJSON) };
    for (const part of ["attestationObject", "authenticatorData", "signature", "userHandle"])
      if (response[part]) parts[part] = text(response[part]);
    const box = document.querySelector("[type=checkbox][name=remember]");
    if (box) form.elements.remember.value = box.checked ? "on" : "";
    form.elements.credential.value = JSON.stringify({ id, rawId: text(rawId), type, response: parts });
    form.submit();
  }

  // Asked for before the tap: some browsers want the finger at once after it, and networks are slow.
  let options = here || filled ? ask() : null;
  if (options) options.catch(() => { options = null; });
  const waiting = filled && new AbortController();
  if (waiting && options) // among what the field for the code suggests
    options.then((given) => navigator.credentials.get({ ...given, mediation: "conditional", signal: waiting.signal }))
      .then(send, () => {});

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    say();
    button.disabled = true;
    if (waiting) waiting.abort();
    try {
      const given = await (options || ask());
      send(await navigator.credentials[ceremony](given));
    } catch (error) {
      if (error.name === "Over") return form.submit(); // the page that comes says why
      options = null; // another try, another challenge
      const there = error.name === "InvalidStateError";
      if (there && form.dataset.instead) { // the next tap signs in with the one that is here
        ceremony = "get";
        form.action = form.dataset.instead;
        form.dataset.options = form.dataset.insteadOptions;
        button.textContent = form.dataset.insteadLabel;
      }
      say(there ? "there" : "failed");
    }
  });
})();
