// The shortest way in: consent and nothing else.

export function runOnboarding(page, study) {
  const { onboarding } = study;
  const section = page.section(
    "welcome",
    `<h1>Which one do you prefer?</h1>
     <p>You will hear two short pieces of music made for the same description. Switch between them as often as
       you like, then say which one you prefer. Headphones help.</p>
     <p class="at-fine" data-at="consent-text"></p>
     <label class="at-consent"><input type="checkbox" data-at="consent"><span>I agree and want to take part.</span></label>
     <label class="at-consent" data-at="training-row"><input type="checkbox" data-at="training" checked>
       <span>My answers may be used to train music models.</span></label>
     <label class="at-consent" data-at="publication-row"><input type="checkbox" data-at="publication">
       <span>My answers may be published under the pseudonym.</span></label>
     <button type="button" class="at-primary" data-at="start" disabled>Start listening</button>`,
  );
  const part = (name) => section.querySelector(`[data-at="${name}"]`);
  part("consent-text").textContent = onboarding.consent_text;
  part("training-row").hidden = !onboarding.ask_training;
  part("publication-row").hidden = !onboarding.ask_publication;
  part("consent").checked = false;
  part("start").disabled = true;
  page.phase("welcome");
  return new Promise((resolve) => {
    part("consent").onchange = (event) => (part("start").disabled = !event.target.checked);
    part("start").onclick = () => {
      part("start").disabled = true;
      page.wakeAudio();
      const [training, publication] = ["training", "publication"].map((name) => part(name).checked);
      resolve({ consent: { version: onboarding.consent_version, training, publication: onboarding.ask_publication && publication } });
    };
  });
}
