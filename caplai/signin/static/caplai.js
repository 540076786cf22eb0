"use strict";
// What a page can do better with JavaScript; without it, every form works as it is.
for (const box of document.querySelectorAll("[data-reveals]")) {
  const field = document.getElementById(box.dataset.reveals);
  field.type = "password"; // a new one is readable until there is a box that shows it
  box.closest("label").hidden = false;
  box.addEventListener("change", () => { field.type = box.checked ? "text" : "password"; });
  field.form.addEventListener("submit", () => { field.type = "password"; });
}
for (const field of document.querySelectorAll("[data-fragment]")) {
  if (location.hash.length < 2) continue;
  field.value = location.hash.slice(1); // a secret of a mail's link: no server has seen it yet
  field.closest(".field").hidden = true;
  history.replaceState(null, "", location.pathname);
}
// Who comes back to a page that answered a form gets it as it is when it is opened, and not the question whether to send
// the form again: what was typed there is not to be sent twice.
history.replaceState(history.state, "", location.href);
const IMPATIENCE = 4000; // milliseconds: later it is somebody who stopped the page, and tries again
for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (event.timeStamp - form.dataset.sent < IMPATIENCE) event.preventDefault();
    else form.dataset.sent = event.timeStamp;
  });
}
addEventListener("pageshow", () => { for (const form of document.forms) delete form.dataset.sent; });
for (const told of document.querySelectorAll("[data-network]"))
  told.hidden = (told.dataset.network === "none") === navigator.onLine;
for (const link of document.querySelectorAll("[data-again]"))
  link.addEventListener("click", (event) => { event.preventDefault(); location.reload(); }); // keeps what stands after #
const errors = document.querySelector(".errors");
if (errors) { errors.tabIndex = -1; errors.focus(); }
// Without a network a page shows that says how to text for a password.
if (navigator.serviceWorker) navigator.serviceWorker.register("/service-worker.js").catch(() => {});
