// The page works without this file. It spares the reloading: what the server renders is taken over in place.
"use strict";

const parse = async (address) => {
  const response = await fetch(address, { headers: { accept: "text/html" } });
  if (!response.ok) throw new Error(String(response.status));
  return new DOMParser().parseFromString(await response.text(), "text/html");
};

const thread = document.getElementById("thread");
const phone = document.getElementById("phone").dataset.phone;

const toEnd = () => { if (thread) thread.scrollTop = thread.scrollHeight; };

// Only what is new or different is touched, so that a screen reader reads only that.
const takeOver = (fresh) => {
  const wanted = fresh.getElementById("thread");
  if (!wanted) return;
  const atEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
  const kept = new Set();
  for (const bubble of [...wanted.children]) {
    kept.add(bubble.id);
    const shown = document.getElementById(bubble.id);
    if (!shown) thread.append(document.adoptNode(bubble));
    else if (shown.outerHTML !== bubble.outerHTML) shown.replaceWith(document.adoptNode(bubble));
  }
  for (const bubble of [...thread.children]) if (!kept.has(bubble.id)) bubble.remove();
  document.getElementById("paid").innerHTML = fresh.getElementById("paid").innerHTML;
  if (atEnd) toEnd();
};

const follow = () => {
  let running = false;
  let again = false;
  const address = "/?" + new URLSearchParams({ phone });
  const look = async () => {
    if (running) { again = true; return; }
    running = true;
    try {
      do { again = false; takeOver(await parse(address)); } while (again);
    } catch { /* the server is away: the event stream comes back by itself and asks again */ }
    running = false;
  };
  new EventSource("/api/events?" + new URLSearchParams({ phone })).addEventListener("change", look);
};

const write = () => {
  const form = document.getElementById("write");
  const text = form.elements.text;
  const button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const response = await fetch("/api/phones/" + phone + "/messages", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ to: form.elements.to.value, text: text.value }),
      });
      if (response.ok) {
        document.getElementById("error")?.remove();
        text.value = "";
        toEnd();
      } else form.submit(); // the page itself says what is wrong, in the right language
    } catch { form.submit(); }
    button.disabled = false;
    text.focus();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("click", (event) => {
    const fill = event.target.closest("a.fill");
    if (!fill) return;
    event.preventDefault();
    text.value = fill.textContent;
    text.focus();
  });
};

const find = () => {
  const form = document.querySelector("form.search");
  let last = 0;
  let timer;
  form.elements.search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const mine = ++last;
      try {
        const fresh = await parse("/?" + new URLSearchParams(new FormData(form)));
        if (mine !== last) return;
        for (const id of ["people", "note"]) {
          document.getElementById(id).innerHTML = fresh.getElementById(id).innerHTML;
        }
      } catch { /* the button still works */ }
    }, 150);
  });
};

find();
if (phone) {
  toEnd();
  write();
  follow();
}
